"""Mounts of an earlier lazyfsd, found again: with its gate taken over, and with the gate lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import MountFailed, Unreachable
from lazyfs.tasks import Supervisor
from tests.conftest import LogWatch
from tests.unit.daemon.scripted import ROOT, Setting, full, mount_of, setting

pytestmark = pytest.mark.usefixtures("jumping")


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Setting]:
    with setting(tmp_path) as made:
        yield made


@asynccontextmanager
async def begun(it: Setting, *, same_gate: bool = True) -> AsyncIterator[None]:
    """After a start, with what goes on behind it."""
    async with trio.open_nursery() as nursery:
        it.watch(nursery)
        await it.revival.begin(Supervisor(nursery), same_gate=same_gate)
        yield
        nursery.cancel_scope.cancel()


def left(it: Setting, directory: str = ROOT, *, there: bool = True, phase: str = "mounted", **changes: str) -> int:
    """What an earlier process has left: a row, and the mount that it is of."""
    row = it.state.add(mount_of(directory, **changes))
    it.state.mark(row.number, phase)
    if there:
        it.kernel.table.append(directory)
    return row.number


async def test_a_mount_that_never_noticed(it: Setting) -> None:
    """Nothing touches it; it is watched, and its image comes to life."""
    number = left(it)
    async with begun(it):
        await wait_all_tasks_blocked()
        assert it.kernel.done == [f"watch {ROOT}"] and it.lifetime.uses.count == 1
        (live,) = it.images.made
        assert it.mounts.live[number].live is live  # type: ignore[comparison-overlap]
        it.kernel.table.clear()
        it.kernel.unmount_events.end(ROOT)
        await wait_all_tasks_blocked()
        assert it.remains == (0, 0, 0, 0) and live.uses.count == 0


@pytest.mark.parametrize("same_gate", [True, False])
async def test_rows_without_a_mount_go(it: Setting, same_gate: bool) -> None:
    """It was unmounted meanwhile, or something else is mounted there now, or a later mount of ours is."""
    left(it, "/gone", there=False)
    left(it, "/other", image="registry.test/other@sha256:0")
    left(it, "/twice", there=False, phase="mounting")
    latest = left(it, "/twice")
    async with begun(it, same_gate=same_gate):
        assert [row.number for row in it.state.rows()] == [latest]
        assert list(it.mounts.live) == [latest]
        assert not it.kernel.done


async def test_a_detached_mount_is_kept_while_its_gate_lives(it: Setting) -> None:
    """Somebody may be in it; nothing tells of its end, and it does not keep the daemon."""
    left(it, there=False, phase="detached")
    async with begun(it):
        await wait_all_tasks_blocked()
        (mount,) = it.mounts.live.values()
        assert mount.is_lost and mount.live is not None and it.lifetime.uses.count == 0
        assert not it.kernel.done


async def test_a_detached_mount_whose_gate_is_lost_is_forgotten(it: Setting) -> None:
    """It cannot be made anew: it is nowhere."""
    left(it, there=False, phase="detached")
    async with begun(it, same_gate=False):
        assert it.remains == (0, 0, 0, 0)


async def test_without_its_gate_a_mount_is_made_anew(it: Setting, expect_log: LogWatch) -> None:
    """At its place, once its image lives, and watched from then on."""
    expect_log("remounted /")
    left(it)
    it.images.gate = trio.Event()
    async with begun(it, same_gate=False):
        await wait_all_tasks_blocked()
        assert not it.kernel.done and it.lifetime.uses.count == 1
        it.images.gate.set()
        await wait_all_tasks_blocked()
        assert it.kernel.done == ["metadata", f"unmount {ROOT}", f"make {ROOT}", f"watch {ROOT}"]
        assert it.remains == (1, 1, 1, 1)


async def test_a_busy_writable_mount_stays_and_says_so(it: Setting) -> None:
    """Two overlays must not write to one directory: what is missing cannot be had until it is mounted again."""
    number = left(it, upper="/upper")
    it.kernel.busy = True
    async with begun(it, same_gate=False):
        await wait_all_tasks_blocked()
        assert "until it is mounted again: /mnt is busy" in it.mounts.live[number].row.trouble
        assert it.kernel.table == [ROOT] and it.kernel.done[-1] == f"watch {ROOT}"


async def test_a_mount_that_cannot_be_made_anew_ends(it: Setting, expect_log: LogWatch) -> None:
    """It is gone from the table: so are its row and its image's user."""
    expect_log("cannot remount /mnt: no loop device")
    left(it)
    it.kernel.errors["make"] = MountFailed("no loop device")
    async with begun(it, same_gate=False):
        await wait_all_tasks_blocked()
        assert it.remains == (0, 0, 0, 0) and it.images.made[0].uses.count == 0


async def test_a_registry_that_is_away_is_tried_again(it: Setting, expect_log: LogWatch) -> None:
    """After 1, 2, 4 seconds; meanwhile the mount says why, and then nothing any more."""
    expect_log("cannot fetch what is missing: away")
    number = left(it)
    it.images.errors = [Unreachable("away")] * 3
    times: list[float] = []
    async with begun(it):
        start = trio.current_time()
        while it.mounts.live[number].live is None:
            await wait_all_tasks_blocked()
            if len(it.images.asked) > len(times):
                times.append(trio.current_time() - start)
                if it.images.errors or len(times) == 3:
                    assert it.state.rows()[0].trouble == "away"
            await trio.sleep(0.5)
        assert times == pytest.approx([0, 1, 3, 7])
        await wait_all_tasks_blocked()
        assert it.mounts.live[number].row.trouble == it.state.rows()[0].trouble == ""


async def test_the_pause_between_tries_has_a_bound(it: Setting, expect_log: LogWatch) -> None:
    """A registry may be away for a day: a minute later than it comes back, its mounts are well."""
    expect_log("cannot fetch what is missing")
    number = left(it)
    it.images.errors = [Unreachable("away")] * 20
    async with begun(it):
        await trio.sleep(1 + 2 + 4 + 8 + 16 + 32 + 60 * 14 + 1)
        assert it.mounts.live[number].live is not None


async def test_a_mount_that_ends_before_its_image_lives(it: Setting) -> None:
    """The image has no user then, and nobody tries any more."""
    left(it)
    it.images.gate = trio.Event()
    async with begun(it):
        await wait_all_tasks_blocked()
        it.kernel.table.clear()
        it.kernel.unmount_events.end(ROOT)
        await wait_all_tasks_blocked()
        it.images.gate.set()
        await wait_all_tasks_blocked()
        (live,) = it.images.made
        assert live.uses.count == 0 and it.remains == (0, 0, 0, 0)
        assert len(it.images.asked) == 1


async def test_metadata_that_is_away_is_tried_again_before_anything_is_unmounted(it: Setting, expect_log: LogWatch) -> None:
    """What works without its gate, works on: files that are here can be read."""
    expect_log("cannot fetch what is missing: the TOC is away")
    expect_log("remounted /")
    left(it)
    it.kernel.errors["metadata"] = Unreachable("the TOC is away")
    async with begun(it, same_gate=False):
        await wait_all_tasks_blocked()
        assert it.kernel.done == ["metadata"] and it.kernel.table == [ROOT]
        await trio.sleep(2)
        assert it.kernel.done[1:3] == ["metadata", f"unmount {ROOT}"] and len(it.images.made) == 1


async def test_one_defect_leaves_the_other_mounts_alone(it: Setting, expect_log: LogWatch) -> None:
    """It is logged with its mount's name, and tried again."""
    expect_log("revival of /[ab] has failed and is tried again in 1 s")
    expect_log("remounted /")
    left(it, "/a")
    left(it, "/b")
    it.kernel.errors["make"] = full("mount")
    async with begun(it, same_gate=False):
        await wait_all_tasks_blocked()
        assert len(it.kernel.table) == 1  # whichever was first has failed
