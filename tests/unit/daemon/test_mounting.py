"""Orders for mounts: carried out, refused, taken back, sent again, in every order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import MountFailed, NotNative, Unreachable
from lazyfs.native.probe import ProbeResult
from lazyfs.reports.orders import MountOrder, UnmountOrder
from lazyfs.reports.results import MountResult, UnmountResult
from tests.conftest import LogWatch
from tests.unit.daemon.scripted import DIGEST, IMAGE, ROOT, Setting, mount_of, order_of, setting

pytestmark = pytest.mark.usefixtures("jumping")


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Setting]:
    with setting(tmp_path) as made:
        made.store.keep_document(DIGEST, b"")
        yield made


async def mount(core: Setting, **changes: object) -> MountResult:
    return await core.mounting.mount(order_of(**changes), core.notify)


async def test_an_order_is_carried_out(core: Setting) -> None:
    """Its row has the digest that the tag means now, and no password."""
    result = await mount(core, creds="user:secret", lazy_only=True, upper="/upper", background="off")
    assert (result.directory, result.image, result.mode) == (ROOT, IMAGE.name, "native")
    (row,) = core.state.rows()
    assert row.mount.reference == f"docker://registry.test/image:v1@{DIGEST}"
    assert (row.mount.upper, row.mount.background, row.mount.ticket) == ("/upper", "off", f"ticket of {ROOT}")
    assert b"secret" not in (core.store.directory.path / "state.sqlite").read_bytes()
    ((wanted, creds, lazy_only),) = core.images.asked
    assert (creds, lazy_only) == ("user:secret", True) and wanted


async def test_an_order_that_is_sent_again_is_not_carried_out_again(core: Setting) -> None:
    """Recognised by its ticket: the answer is the same, and the image has no further use."""
    first = await mount(core)
    assert await mount(core) == first
    assert core.kernel.table == [ROOT] and len(core.rows) == 1
    assert [each.uses.count for each in core.images.made] == [1, 0]
    with pytest.raises(MountFailed, match="is a lazyfs mount already"):
        await mount(core, ticket="another")


@pytest.mark.parametrize("failing", ["image", "metadata", "make"])
async def test_an_order_that_fails_leaves_nothing(core: Setting, failing: str) -> None:
    """Neither a mount nor a user of the image; the next order is carried out."""
    if failing == "image":
        core.images.errors.append(Unreachable("the registry is away"))
    else:
        core.kernel.errors[failing] = MountFailed("it fails")
    with pytest.raises((Unreachable, MountFailed), match=r"away|fails"):
        await mount(core)
    assert core.remains == (0, 0, 0, 0)
    assert [(each.uses.count, each.given_up) for each in core.images.made] == ([] if failing == "image" else [(0, 1)])
    await mount(core)
    assert core.kernel.table == [ROOT]


async def test_two_orders_for_one_directory(core: Setting) -> None:
    """The second is refused while the first is carried out; orders for other directories are not."""
    core.images.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.mounting.mount, order_of(), core.notify)
        nursery.start_soon(core.mounting.mount, order_of("/other"), core.notify)
        await wait_all_tasks_blocked()
        for refused in (order_of(ticket="another"), order_of("/third", upper=ROOT)):
            with pytest.raises(MountFailed, match=f"another order for {ROOT}"):
                await core.mounting.mount(refused, core.notify)
        with pytest.raises(MountFailed, match="another order"):
            await core.mounting.unmount(UnmountOrder(ROOT))
        core.images.gate.set()
    assert sorted(core.kernel.table) == [ROOT, "/other"]
    with pytest.raises(MountFailed, match="already"):
        await mount(core, ticket="another")


async def test_an_upper_directory_is_of_one_mount(core: Setting) -> None:
    """Also of one that was detached, as long as it is in use."""
    await mount(core, upper="/upper")
    with pytest.raises(MountFailed, match=r"/upper takes the changes of the mount at /mnt\. "):
        await core.mounting.mount(order_of("/other", upper="/upper"), core.notify)
    core.kernel.busy = True
    await core.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    with pytest.raises(MountFailed, match="was detached and is still in use"):
        await core.mounting.mount(order_of("/other", upper="/upper"), core.notify)
    assert core.kernel.table == []


async def test_a_machine_that_cannot_is_tried_once(core: Setting) -> None:
    """The client may then mount portably."""
    core.kernel.verdict = ProbeResult(False, False, "no EROFS")
    for _ in range(2):
        with pytest.raises(NotNative, match="no EROFS"):
            await mount(core)
    assert core.kernel.done == ["try out"] and not core.images.asked


async def test_a_daemon_without_a_gate_mounts_nothing(core: Setting) -> None:
    """It is about to end."""
    core.mounting.has_gate = False
    with pytest.raises(MountFailed, match="is stopping"):
        await mount(core)
    assert core.remains == (0, 0, 0, 0) and not core.images.asked


async def test_cancelled_while_the_image_comes_to_life(core: Setting) -> None:
    """Ctrl-C in the client: nothing is left, and the directory is free."""
    core.images.gate = trio.Event()
    with trio.move_on_after(5):
        await mount(core)
    assert core.remains == (0, 0, 0, 0) and not core.kernel.done[1:]
    core.images.gate.set()
    await mount(core)


async def test_cancelled_when_the_overlay_is_made(core: Setting) -> None:
    """A mount whose client has gone is unmounted, and its end is waited for."""
    async with trio.open_nursery() as nursery:
        core.watch(nursery)
        with trio.CancelScope() as scope:
            core.kernel.on_make = scope.cancel
            await mount(core)
        assert scope.cancelled_caught and core.remains == (0, 0, 0, 0)
        (live,) = core.images.made
        assert (live.uses.count, live.given_up) == (0, 1)
        nursery.cancel_scope.cancel()


async def test_cancelled_and_in_use_already(core: Setting, expect_log: LogWatch) -> None:
    """Who is in it keeps it: the mount stays, and the log says so."""
    expect_log("was cancelled, but its mount cannot be removed")
    core.kernel.busy = True
    with trio.CancelScope() as scope:
        core.kernel.on_make = scope.cancel
        await mount(core)
    assert scope.cancelled_caught and core.remains == (1, 1, 1, 1)


async def test_unmounted(core: Setting) -> None:
    """The answer comes when the last of it is gone."""
    async with trio.open_nursery() as nursery:
        core.watch(nursery)
        await mount(core)
        assert await core.mounting.unmount(UnmountOrder(ROOT)) == UnmountResult(ROOT)
        assert core.remains == (0, 0, 0, 0)
        nursery.cancel_scope.cancel()
    with pytest.raises(MountFailed, match="not a mount of this lazyfsd"):
        await core.mounting.unmount(UnmountOrder(ROOT))


async def test_an_end_that_nobody_reports_is_waited_for_five_seconds(core: Setting) -> None:
    """And no longer; lazily, not at all."""
    await mount(core)
    began = trio.current_time()
    await core.mounting.unmount(UnmountOrder(ROOT))
    assert trio.current_time() - began == pytest.approx(5)
    await core.mounts.end(1)
    await mount(core)
    began = trio.current_time()
    await core.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert trio.current_time() == began


async def test_a_busy_mount_stays_or_is_detached(core: Setting) -> None:
    """What was said of it first is taken back where it could not be done."""
    await mount(core)
    core.kernel.busy = True
    with pytest.raises(MountFailed, match="busy"):
        await core.mounting.unmount(UnmountOrder(ROOT))
    assert core.rows == [(ROOT, "mounted")]
    core.kernel.errors["detach"] = MountFailed("not even that")
    with pytest.raises(MountFailed, match="not even that"):
        await core.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert core.rows == [(ROOT, "mounted")]
    await core.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert core.rows == [(ROOT, "detached")] and core.kernel.table == []
    assert core.mounts.live[1].row.phase == "detached"


async def test_of_two_mounts_at_one_place_the_latest_is_unmounted(core: Setting) -> None:
    """The other one was detached, and is still in use."""
    core.kernel.busy = True
    await mount(core)
    await core.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    await mount(core, ticket="another")
    await core.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert [row.phase for row in core.state.rows()] == ["detached", "detached"]
    assert core.lifetime.uses.count == 2


async def test_an_order_of_a_found_mount_is_answered(core: Setting) -> None:
    """The process that carried it out died before it said so. Cancelled, the mount stays: somebody may know of it."""
    order: MountOrder = order_of()
    core.mounts.adopt(core.state.add(mount_of(ticket=order.ticket)), attached=True)
    core.images.gate = trio.Event()
    with trio.move_on_after(1):
        await core.mounting.mount(order, core.notify)
    assert len(core.mounts.live) == 1
    core.images.gate.set()
    assert (await core.mounting.mount(order, core.notify)).directory == ROOT
    assert core.images.made[-1].uses.count == 0 and core.kernel.done == []
