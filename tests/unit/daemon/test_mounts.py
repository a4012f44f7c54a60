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
def core(tmp_path: Path) -> Iterator[Setting]:
    with setting(tmp_path) as made:
        yield made


async def make(core: Setting, directory: str = ROOT, **changes: object) -> ScriptedImage:
    """Mount a live image of its own."""
    live = ScriptedImage()
    await core.mounts.make(mount_of(directory, **changes), cast(LiveImage, live))
    return live


async def test_a_mount_is_made_and_ends(core: Setting) -> None:
    """The row is there before the overlay, the mark after it, and everything is gone when the kernel says that the mount is."""
    seen: list[object] = []
    core.kernel.on_make = lambda: seen.append(core.rows)
    async with trio.open_nursery() as nursery:
        core.watch(nursery)
        live = await make(core)
        assert seen == [[(ROOT, "mounting")]]
        assert core.rows == [(ROOT, "mounted")] and core.lifetime.uses.count == 1 and core.mounts.is_used
        assert core.kernel.done == ["metadata", f"make {ROOT}", "open names", f"watch {ROOT}"] and core.warm_up.begun == 1
        (mount,) = core.mounts.live.values()
        await core.mounts.unmount(ROOT, lazy=False)
        await mount.ended.wait()
        assert core.kernel.done[-3:] == [f"unmount {ROOT}", f"clear up {ROOT}", "drop layers"]
        assert core.remains == (0, 0, 0, 0) and live.uses.count == 0 and not core.mounts.is_used
        nursery.cancel_scope.cancel()


async def test_a_detached_mount_lives_until_its_last_user_goes(core: Setting) -> None:
    """What is in use keeps its image and the daemon, though it is nowhere to be seen."""
    core.kernel.busy = True
    async with trio.open_nursery() as nursery:
        core.watch(nursery)
        live = await make(core)
        with pytest.raises(MountFailed, match="busy"):
            await core.mounts.unmount(ROOT, lazy=False)
        await core.mounts.unmount(ROOT, lazy=True)
        await wait_all_tasks_blocked()
        assert live.uses.count == core.lifetime.uses.count == 1 and core.rows == [(ROOT, "mounted")]
        core.kernel.unmount_events.end(ROOT)
        await wait_all_tasks_blocked()
        assert core.remains == (0, 0, 0, 0) and live.uses.count == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("call", ["metadata", "make"])
async def test_what_cannot_be_made_leaves_nothing(core: Setting, call: str) -> None:
    """The row goes as well; the image stays its caller's."""
    core.kernel.errors[call] = NotNative("no EROFS")
    live = ScriptedImage()
    with pytest.raises(NotNative, match="no EROFS"):
        await core.mounts.make(mount_of(), cast(LiveImage, live))
    assert core.remains == (0, 0, 0, 0) and live.uses.count == 1


async def test_cancelled_while_the_overlay_is_made_it_is_made(core: Setting) -> None:
    """It is completed: marked and watched, and the caller gets its row."""
    with trio.CancelScope() as scope:
        core.kernel.on_make = scope.cancel
        await make(core)
    assert scope.cancel_called
    assert core.rows == [(ROOT, "mounted")] and f"watch {ROOT}" in core.kernel.done


async def test_cancelled_before_the_overlay_nothing_is_made(core: Setting) -> None:
    """Nor a row."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await make(core)
    assert core.remains == (0, 0, 0, 0) and "make" not in " ".join(core.kernel.done)


async def test_a_mount_that_ended_before_it_was_watched(core: Setting) -> None:
    """There is no unmount event any more: the mount table shows it."""
    core.kernel.on_make = core.kernel.table.clear
    live = await make(core)
    assert core.remains == (0, 0, 0, 0) and live.uses.count == 0


@pytest.mark.parametrize(("call", "words"), [("watch", "cannot watch"), ("mounted", "cannot find out whether")])
async def test_without_a_watch_or_a_table_a_mount_stays(core: Setting, call: str, words: str, expect_log: LogWatch) -> None:
    """No inotify watches left, or no descriptors: it is mounted all the same."""
    expect_log(words)
    core.kernel.errors[call] = full(call)
    await make(core)
    assert core.remains == (1, 1, 1, 1)


async def test_a_throw_away_mount_is_not_looked_through(core: Setting) -> None:
    """It runs one command. That another one may follow is noted at its end."""
    await make(core, volatile=True)
    assert not core.warm_up.begun
    await core.mounts.end(1)
    assert core.lifetime.last_was_volatile


async def test_a_look_that_cannot_begin_is_a_warning(core: Setting, expect_log: LogWatch) -> None:
    """It only makes later reads quicker."""
    expect_log("cannot warm up the inodes")
    core.kernel.errors["open names"] = full("open")
    await make(core)
    assert core.remains == (1, 1, 1, 1)


async def test_a_full_disk_ends_no_mount(core: Setting, expect_log: LogWatch) -> None:
    """The mark and the removal of the row fail: the mount lives, and ends, and the row is a leftover that the next start finds."""
    expect_log("cannot save the state")
    core.state.full = True  # type: ignore[attr-defined]
    await make(core)
    assert core.rows == [(ROOT, "mounting")]
    (mount,) = core.mounts.live.values()
    assert mount.row.phase == "mounted"
    await core.mounts.end(1)
    assert core.remains == (1, 1, 0, 0) and mount.ended.is_set()


async def test_an_end_that_cannot_be_cleared_up_is_an_end(core: Setting, expect_log: LogWatch) -> None:
    """Waiting tasks continue, and the daemon may stop."""
    expect_log("cannot clean up after the mount at /mnt")
    await make(core)
    (mount,) = core.mounts.live.values()
    core.kernel.errors["clear up"] = full("rmdir")
    await core.mounts.end(1)
    await core.mounts.end(1)
    assert mount.ended.is_set() and core.lifetime.uses.count == 0


async def test_a_cancelled_end_is_finished(core: Setting) -> None:
    """Its row goes, its image is left."""
    live = await make(core)
    with trio.CancelScope() as scope:
        scope.cancel()
        await core.mounts.end(1)
    assert core.rows == [] and live.uses.count == 0 and core.lifetime.uses.count == 0


async def test_one_end_that_fails_leaves_the_next_to_be_reported(core: Setting, expect_log: LogWatch) -> None:
    """Two mounts end at once, and the first one's end is a defect: the second one ends all the same."""
    expect_log("end of a mount of number 1 has failed")
    async with trio.open_nursery() as nursery:
        await make(core, "/a")
        await make(core, "/b")
        core.kernel.errors["clear up"] = cast(OSError, ZeroDivisionError("a bug"))
        core.watch(nursery)
        core.kernel.table.clear()
        for directory in ("/a", "/b"):
            core.kernel.unmount_events.end(directory)
        await wait_all_tasks_blocked()
        assert core.remains == (0, 0, 0, 0)
        nursery.cancel_scope.cancel()


async def test_mounts_are_made_one_at_a_time(core: Setting, jumping: MockClock) -> None:
    """They share the mount points of their layers."""
    inside: list[int] = []
    under_way = 0
    add = core.state.add

    def count(mount: object) -> object:
        nonlocal under_way
        under_way += 1
        inside.append(under_way)
        return add(mount)  # type: ignore[arg-type]

    def made() -> None:
        nonlocal under_way
        under_way -= 1

    core.state.add = count  # type: ignore[assignment,method-assign]
    core.kernel.on_make = made
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(make, core, f"/{number}")
    assert inside == [1, 1, 1, 1] and core.remains == (4, 4, 4, 4)


async def test_a_found_mount_gets_its_image_later(core: Setting) -> None:
    """Until then its objects are expected; at its end it leaves the image, or what was expected is forgotten."""
    for directory in ("/a", "/b"):
        core.mounts.adopt(core.state.add(mount_of(directory)), attached=True)
    live = ScriptedImage()
    core.mounts.set_image(1, cast(LiveImage, live))
    await core.mounts.end(1)
    assert live.uses.count == 0 and core.mounts.is_used
    await core.mounts.end(2)
    assert core.remains == (0, 0, 0, 0)
    late = ScriptedImage()
    core.mounts.set_image(2, cast(LiveImage, late))
    assert late.uses.count == 0


async def test_a_lost_mount_does_not_keep_the_daemon(core: Setting) -> None:
    """There will be no unmount event."""
    core.mounts.adopt(core.state.add(mount_of()), attached=False)
    assert not core.mounts.is_used and core.lifetime.uses.count == 0
    await core.mounts.end(1)
    assert core.lifetime.uses.count == 0 and core.rows == []


@pytest.mark.parametrize(
    ("busy", "upper", "answer", "asked"),
    [
        (False, "", "", ["unmount", "make"]),
        (True, "", "", ["unmount", "detach", "make"]),
        (True, "/upper", "/mnt is busy", ["unmount"]),
        (False, "/upper", "", ["unmount", "make"]),
    ],
)
async def test_made_again(core: Setting, busy: bool, upper: str, answer: str, asked: list[str]) -> None:
    """At its place, busy or not; but two overlays never write to one upper directory."""
    row = core.state.add(mount_of(upper=upper))
    core.kernel.table.append(ROOT)
    core.kernel.busy = busy
    assert await core.mounts.remount(row, cast(LiveImage, ScriptedImage())) == answer
    assert core.kernel.done == ["metadata", *(f"{each} {ROOT}" for each in asked)]
    assert core.kernel.table == [ROOT]


async def test_trouble_is_reported_of_what_lives(core: Setting) -> None:
    """In the row as well, so that the next process knows it; of a mount that has ended nothing is said."""
    await make(core)
    await core.mounts.trouble(1, "its gate is dead")
    assert core.mounts.live[1].row.trouble == core.state.rows()[0].trouble == "its gate is dead"
    await core.mounts.end(1)
    await core.mounts.trouble(1, "too late")
    assert core.rows == [] and not core.mounts.live


async def test_a_record_is_written_at_the_end(core: Setting, tmp_path: Path) -> None:
    """Of each mount that was asked for one."""
    record = tmp_path / "record"
    live = ScriptedImage()
    live.layers = ()
    await core.mounts.make(mount_of(record=str(record)), cast(LiveImage, live))
    await make(core, "/other")
    await core.mounts.end(2)
    assert not record.exists()
    await core.mounts.end(1)
    assert record.read_text() == ""  # nothing was touched
