"""Native mounts from their row to their end, in every order, over a kernel that a test plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import MountFailed, NotNative
from lazyfs.live.image import LiveImage
from tests.conftest import LogWatch
from tests.unit.daemon.scripted import ROOT, ScriptedImage, Setting, full, mount_of, setting

pytestmark = pytest.mark.usefixtures("jumping")


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Setting]:
    with setting(tmp_path) as made:
        yield made


async def make(it: Setting, directory: str = ROOT, **changes: object) -> ScriptedImage:
    """Mount a live image of its own."""
    live = ScriptedImage()
    await it.mounts.make(mount_of(directory, **changes), cast(LiveImage, live))
    return live


async def test_a_mount_is_made_and_ends(it: Setting) -> None:
    """The row is there before the overlay, the mark after it, and everything is gone when the kernel says that the mount is."""
    seen: list[object] = []
    it.kernel.on_make = lambda: seen.append(it.rows)
    async with trio.open_nursery() as nursery:
        it.watch(nursery)
        live = await make(it)
        assert seen == [[(ROOT, "mounting")]]
        assert it.rows == [(ROOT, "mounted")] and it.lifetime.uses.count == 1 and it.mounts.is_used
        assert it.kernel.done == ["metadata", f"make {ROOT}", "open names", f"watch {ROOT}"] and it.warm_up.begun == 1
        (mount,) = it.mounts.live.values()
        await it.mounts.take_away(ROOT, lazy=False)
        await mount.ended.wait()
        assert it.kernel.done[-3:] == [f"unmount {ROOT}", f"clear up {ROOT}", "drop layers"]
        assert it.remains == (0, 0, 0, 0) and live.uses.count == 0 and not it.mounts.is_used
        nursery.cancel_scope.cancel()


async def test_a_detached_mount_lives_until_its_last_user_goes(it: Setting) -> None:
    """What is in use keeps its image and the daemon, though it is nowhere to be seen."""
    it.kernel.busy = True
    async with trio.open_nursery() as nursery:
        it.watch(nursery)
        live = await make(it)
        with pytest.raises(MountFailed, match="busy"):
            await it.mounts.take_away(ROOT, lazy=False)
        await it.mounts.take_away(ROOT, lazy=True)
        await wait_all_tasks_blocked()
        assert live.uses.count == it.lifetime.uses.count == 1 and it.rows == [(ROOT, "mounted")]
        it.kernel.unmount_events.end(ROOT)
        await wait_all_tasks_blocked()
        assert it.remains == (0, 0, 0, 0) and live.uses.count == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("call", ["metadata", "make"])
async def test_what_cannot_be_made_leaves_nothing(it: Setting, call: str) -> None:
    """The row goes as well; the image stays its caller's."""
    it.kernel.errors[call] = NotNative("no EROFS")
    live = ScriptedImage()
    with pytest.raises(NotNative, match="no EROFS"):
        await it.mounts.make(mount_of(), cast(LiveImage, live))
    assert it.remains == (0, 0, 0, 0) and live.uses.count == 1


async def test_cancelled_while_the_overlay_is_made_it_is_made(it: Setting) -> None:
    """There is no way back half-done: it has its mark, is watched, and whoever ordered it hears which one it is."""
    with trio.CancelScope() as scope:
        it.kernel.on_make = scope.cancel
        await make(it)
    assert scope.cancel_called
    assert it.rows == [(ROOT, "mounted")] and f"watch {ROOT}" in it.kernel.done


async def test_cancelled_before_the_overlay_nothing_is_made(it: Setting) -> None:
    """Nor a row."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await make(it)
    assert it.remains == (0, 0, 0, 0) and "make" not in " ".join(it.kernel.done)


async def test_a_mount_that_ended_before_it_was_watched(it: Setting) -> None:
    """Nobody tells of it any more: the kernel's table does."""
    it.kernel.on_make = it.kernel.table.clear
    live = await make(it)
    assert it.remains == (0, 0, 0, 0) and live.uses.count == 0


@pytest.mark.parametrize(("call", "words"), [("watch", "cannot watch"), ("mounted", "cannot find out whether")])
async def test_without_a_watch_or_a_table_a_mount_stays(it: Setting, call: str, words: str, expect_log: LogWatch) -> None:
    """No inotify watches left, or no descriptors: it is mounted all the same."""
    expect_log(words)
    it.kernel.errors[call] = full(call)
    await make(it)
    assert it.remains == (1, 1, 1, 1)


async def test_a_throw_away_mount_is_not_looked_through(it: Setting) -> None:
    """It runs one command. That another one may follow is noted at its end."""
    await make(it, volatile=True)
    assert not it.warm_up.begun
    await it.mounts.end(1)
    assert it.lifetime.last_was_volatile


async def test_a_look_that_cannot_begin_is_a_warning(it: Setting, expect_log: LogWatch) -> None:
    """It only makes later reads quicker."""
    expect_log("cannot warm up the inodes")
    it.kernel.errors["open names"] = full("open")
    await make(it)
    assert it.remains == (1, 1, 1, 1)


async def test_a_full_disk_ends_no_mount(it: Setting, expect_log: LogWatch) -> None:
    """The mark and the removal of the row fail: the mount lives, and ends, and the row is a leftover that the next start finds."""
    expect_log("cannot save the state")
    it.state.full = True  # type: ignore[attr-defined]
    await make(it)
    assert it.rows == [(ROOT, "mounting")]
    (mount,) = it.mounts.live.values()
    assert mount.row.phase == "mounted"
    await it.mounts.end(1)
    assert it.remains == (1, 1, 0, 0) and mount.ended.is_set()


async def test_an_end_that_cannot_be_cleared_up_is_an_end(it: Setting, expect_log: LogWatch) -> None:
    """Whoever waits for it goes on, and the daemon may end."""
    expect_log("cannot clean up after the mount at /mnt")
    await make(it)
    (mount,) = it.mounts.live.values()
    it.kernel.errors["clear up"] = full("rmdir")
    await it.mounts.end(1)
    await it.mounts.end(1)
    assert mount.ended.is_set() and it.lifetime.uses.count == 0


async def test_a_cancelled_end_is_finished(it: Setting) -> None:
    """Its row goes, its image is left."""
    live = await make(it)
    with trio.CancelScope() as scope:
        scope.cancel()
        await it.mounts.end(1)
    assert it.rows == [] and live.uses.count == 0 and it.lifetime.uses.count == 0


async def test_one_end_that_fails_leaves_the_next_to_be_told(it: Setting, expect_log: LogWatch) -> None:
    """Two mounts end at once, and the first one's end is a defect: the second one ends all the same."""
    expect_log("end of a mount of number 1 has failed")
    async with trio.open_nursery() as nursery:
        await make(it, "/a")
        await make(it, "/b")
        it.kernel.errors["clear up"] = cast(OSError, ZeroDivisionError("a bug"))
        it.watch(nursery)
        it.kernel.table.clear()
        for directory in ("/a", "/b"):
            it.kernel.unmount_events.end(directory)
        await wait_all_tasks_blocked()
        assert it.remains == (0, 0, 0, 0)
        nursery.cancel_scope.cancel()


async def test_mounts_are_made_one_at_a_time(it: Setting, jumping: MockClock) -> None:
    """They share the mount points of their layers."""
    inside: list[int] = []
    under_way = 0
    add = it.state.add

    def count(mount: object) -> object:
        nonlocal under_way
        under_way += 1
        inside.append(under_way)
        return add(mount)  # type: ignore[arg-type]

    def made() -> None:
        nonlocal under_way
        under_way -= 1

    it.state.add = count  # type: ignore[assignment,method-assign]
    it.kernel.on_make = made
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(make, it, f"/{number}")
    assert inside == [1, 1, 1, 1] and it.remains == (4, 4, 4, 4)


async def test_a_found_mount_gets_its_image_later(it: Setting) -> None:
    """Until then its objects are expected; at its end it leaves the image, or what was expected is forgotten."""
    for directory in ("/a", "/b"):
        it.mounts.found(it.state.add(mount_of(directory)), attached=True)
    live = ScriptedImage()
    it.mounts.has_image(1, cast(LiveImage, live))
    await it.mounts.end(1)
    assert live.uses.count == 0 and it.mounts.is_used
    await it.mounts.end(2)
    assert it.remains == (0, 0, 0, 0)
    late = ScriptedImage()
    it.mounts.has_image(2, cast(LiveImage, late))
    assert late.uses.count == 0


async def test_a_lost_mount_does_not_keep_the_daemon(it: Setting) -> None:
    """Nothing will tell of its end."""
    it.mounts.found(it.state.add(mount_of()), attached=False)
    assert not it.mounts.is_used and it.lifetime.uses.count == 0
    await it.mounts.end(1)
    assert it.lifetime.uses.count == 0 and it.rows == []


@pytest.mark.parametrize(
    ("busy", "upper", "answer", "asked"),
    [
        (False, "", "", ["unmount", "make"]),
        (True, "", "", ["unmount", "detach", "make"]),
        (True, "/upper", "/mnt is busy", ["unmount"]),
        (False, "/upper", "", ["unmount", "make"]),
    ],
)
async def test_made_anew(it: Setting, busy: bool, upper: str, answer: str, asked: list[str]) -> None:
    """At its place, busy or not; but two overlays never write to one upper directory."""
    row = it.state.add(mount_of(upper=upper))
    it.kernel.table.append(ROOT)
    it.kernel.busy = busy
    assert await it.mounts.make_anew(row, cast(LiveImage, ScriptedImage())) == answer
    assert it.kernel.done == ["metadata", *(f"{each} {ROOT}" for each in asked)]
    assert it.kernel.table == [ROOT]


async def test_trouble_is_told_of_what_lives(it: Setting) -> None:
    """In the row as well, so that the next process knows it; of a mount that has ended nothing is said."""
    await make(it)
    await it.mounts.trouble(1, "its gate is dead")
    assert it.mounts.live[1].row.trouble == it.state.rows()[0].trouble == "its gate is dead"
    await it.mounts.end(1)
    await it.mounts.trouble(1, "too late")
    assert it.rows == [] and not it.mounts.live


async def test_a_record_is_written_at_the_end(it: Setting, tmp_path: Path) -> None:
    """Of each mount that was asked for one."""
    record = tmp_path / "record"
    live = ScriptedImage()
    live.layers = ()
    await it.mounts.make(mount_of(record=str(record)), cast(LiveImage, live))
    await make(it, "/other")
    await it.mounts.end(2)
    assert not record.exists()
    await it.mounts.end(1)
    assert record.read_text() == ""  # nothing was touched
