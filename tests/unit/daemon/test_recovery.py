"""Mounts of an earlier lazyfsd, found again: with its gate taken over, and with the gate lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.daemon.state import Row
from lazyfs.errors import MountFailed, Unreachable
from lazyfs.tasks import Supervisor
from tests.conftest import LogWatch
from tests.unit.daemon.scripted import ROOT, Setting, full, mount_of, setting

pytestmark = pytest.mark.usefixtures("jumping")


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Setting]:
    with setting(tmp_path) as made:
        yield made


@asynccontextmanager
async def begun(core: Setting, *, same_gate: bool = True) -> AsyncIterator[None]:
    """After a start, with what goes on behind it."""
    async with trio.open_nursery() as nursery:
        core.watch(nursery)
        await core.recovery.begin(Supervisor(nursery), same_gate=same_gate)
        yield
        nursery.cancel_scope.cancel()


def left(core: Setting, directory: str = ROOT, *, there: bool = True, phase: str = "mounted", **changes: str) -> int:
    """What an earlier process has left: a row, and the mount that it is of."""
    row = core.state.add(mount_of(directory, **changes))
    core.state.mark(row.number, phase)
    if there:
        core.kernel.table.append(directory)
    return row.number


async def test_a_mount_that_never_noticed(core: Setting) -> None:
    """Nothing touches it; it is watched, and its image becomes live."""
    number = left(core)
    async with begun(core):
        await wait_all_tasks_blocked()
        assert core.kernel.done == [f"watch {ROOT}"] and core.lifetime.uses.count == 1
        (live,) = core.images.made
        assert core.mounts.live[number].live is live  # type: ignore[comparison-overlap]
        core.kernel.table.clear()
        core.kernel.unmount_events.end(ROOT)
        await wait_all_tasks_blocked()
        assert core.remains == (0, 0, 0, 0) and live.uses.count == 0


@pytest.mark.parametrize("same_gate", [True, False])
async def test_rows_without_a_mount_go(core: Setting, same_gate: bool) -> None:
    """It was unmounted meanwhile, or something else is mounted there now, or a later mount of ours is."""
    left(core, "/gone", there=False)
    left(core, "/other", image="registry.test/other@sha256:0")
    left(core, "/twice", there=False, phase="mounting")
    latest = left(core, "/twice")
    async with begun(core, same_gate=same_gate):
        assert [row.number for row in core.state.rows()] == [latest]
        assert list(core.mounts.live) == [latest]
        assert not core.kernel.done


async def test_a_detached_mount_is_kept_while_its_gate_lives(core: Setting) -> None:
    """It may be in use; there is no unmount event, and it does not keep the daemon running."""
    left(core, there=False, phase="detached")
    async with begun(core):
        await wait_all_tasks_blocked()
        (mount,) = core.mounts.live.values()
        assert mount.is_untracked and mount.live is not None and core.lifetime.uses.count == 0
        assert not core.kernel.done


async def test_a_detached_mount_whose_gate_is_lost_is_forgotten(core: Setting) -> None:
    """It cannot be mounted again: it has no mount point."""
    left(core, there=False, phase="detached")
    async with begun(core, same_gate=False):
        assert core.remains == (0, 0, 0, 0)


async def test_without_its_gate_a_mount_is_made_again(core: Setting, expect_log: LogWatch) -> None:
    """At its place, once its image lives, and watched from then on."""
    expect_log("remounted /")
    left(core)
    core.images.gate = trio.Event()
    async with begun(core, same_gate=False):
        await wait_all_tasks_blocked()
        assert not core.kernel.done and core.lifetime.uses.count == 1
        core.images.gate.set()
        await wait_all_tasks_blocked()
        assert core.kernel.done == ["metadata", f"unmount {ROOT}", f"make {ROOT}", f"watch {ROOT}"]
        assert core.remains == (1, 1, 1, 1)


async def test_a_busy_writable_mount_stays_and_says_so(core: Setting) -> None:
    """Two overlays must not write to one directory: what is missing cannot be had until it is mounted again."""
    number = left(core, upper="/upper")
    core.kernel.busy = True
    async with begun(core, same_gate=False):
        await wait_all_tasks_blocked()
        assert "until it is mounted again: /mnt is busy" in core.mounts.live[number].row.trouble
        assert core.kernel.table == [ROOT] and core.kernel.done[-1] == f"watch {ROOT}"


async def test_a_mount_that_cannot_be_made_again_ends(core: Setting, expect_log: LogWatch) -> None:
    """It is gone from the table: so are its row and its image's user."""
    expect_log("cannot remount /mnt: no loop device")
    left(core)
    core.kernel.errors["make"] = MountFailed("no loop device")
    async with begun(core, same_gate=False):
        await wait_all_tasks_blocked()
        assert core.remains == (0, 0, 0, 0) and core.images.made[0].uses.count == 0


async def test_a_registry_that_is_away_is_tried_again(core: Setting, expect_log: LogWatch) -> None:
    """After 1, 2, 4 seconds; meanwhile the mount says why, and then nothing any more."""
    expect_log("cannot fetch what is missing: away")
    number = left(core)
    core.images.errors = [Unreachable("away")] * 3
    times: list[float] = []
    async with begun(core):
        start = trio.current_time()
        while core.mounts.live[number].live is None:
            await wait_all_tasks_blocked()
            if len(core.images.asked) > len(times):
                times.append(trio.current_time() - start)
                if core.images.errors or len(times) == 3:
                    assert core.state.rows()[0].trouble == "away"
            await trio.sleep(0.5)
        assert times == pytest.approx([0, 1, 3, 7])
        await wait_all_tasks_blocked()
        assert core.mounts.live[number].row.trouble == core.state.rows()[0].trouble == ""


async def test_the_pause_between_tries_has_a_bound(core: Setting, expect_log: LogWatch) -> None:
    """A registry may be away for a day: a minute later than it comes back, its mounts are well."""
    expect_log("cannot fetch what is missing")
    number = left(core)
    core.images.errors = [Unreachable("away")] * 20
    async with begun(core):
        await trio.sleep(1 + 2 + 4 + 8 + 16 + 32 + 60 * 14 + 1)
        assert core.mounts.live[number].live is not None


async def test_a_mount_that_ends_before_its_image_lives(core: Setting) -> None:
    """The image is released, and there is no further attempt."""
    left(core)
    core.images.gate = trio.Event()
    async with begun(core):
        await wait_all_tasks_blocked()
        core.kernel.table.clear()
        core.kernel.unmount_events.end(ROOT)
        await wait_all_tasks_blocked()
        core.images.gate.set()
        await wait_all_tasks_blocked()
        (live,) = core.images.made
        assert live.uses.count == 0 and core.remains == (0, 0, 0, 0)
        assert len(core.images.asked) == 1


async def test_metadata_that_is_away_is_tried_again_before_anything_is_unmounted(core: Setting, expect_log: LogWatch) -> None:
    """What works without its gate, works on: files that are here can be read."""
    expect_log("cannot fetch what is missing: the TOC is away")
    expect_log("remounted /")
    left(core)
    core.kernel.errors["metadata"] = Unreachable("the TOC is away")
    async with begun(core, same_gate=False):
        await wait_all_tasks_blocked()
        assert core.kernel.done == ["metadata"] and core.kernel.table == [ROOT]
        await trio.sleep(2)
        assert core.kernel.done[1:3] == ["metadata", f"unmount {ROOT}"] and len(core.images.made) == 1


async def test_one_defect_leaves_the_other_mounts_alone(core: Setting, expect_log: LogWatch) -> None:
    """It is logged with its mount's name, and tried again."""
    expect_log("revival of /[ab] has failed and is tried again in 1 s")
    expect_log("remounted /")
    left(core, "/a")
    left(core, "/b")
    core.kernel.errors["make"] = full("mount")
    async with begun(core, same_gate=False):
        await wait_all_tasks_blocked()
        assert len(core.kernel.table) == 1  # whichever was first has failed


async def test_a_surprise_in_one_row_is_that_mount_s(
    core: Setting, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are found, and its row stays: it may be mounted."""
    bad, good = left(core, "/a"), left(core, "/b")
    adopt = core.mounts.adopt

    def surprised(row: Row, *, attached: bool) -> None:
        if row.number == bad:
            raise MemoryError("surprise")
        adopt(row, attached=attached)

    monkeypatch.setattr(core.mounts, "adopt", surprised)
    async with begun(core):
        expect_log("revival of /a has failed: MemoryError")
        await wait_all_tasks_blocked()
        assert list(core.mounts.live) == [good]
        assert [row.number for row in core.state.rows()] == [bad, good]
        assert not core.recovery.is_complete
