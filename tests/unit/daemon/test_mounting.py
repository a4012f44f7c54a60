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
def it(tmp_path: Path) -> Iterator[Setting]:
    with setting(tmp_path) as made:
        made.store.keep_document(DIGEST, b"")
        yield made


async def mount(it: Setting, **changes: object) -> MountResult:
    return await it.mounting.mount(order_of(**changes), it.notify)


async def test_an_order_is_carried_out(it: Setting) -> None:
    """Its row has the digest that the tag means now, and no password."""
    result = await mount(it, creds="user:secret", lazy_only=True, upper="/upper", background="off")
    assert (result.directory, result.image, result.mode) == (ROOT, IMAGE.name, "native")
    (row,) = it.state.rows()
    assert row.mount.reference == f"docker://registry.test/image:v1@{DIGEST}"
    assert (row.mount.upper, row.mount.background, row.mount.ticket) == ("/upper", "off", f"ticket of {ROOT}")
    assert b"secret" not in (it.store.directory.path / "state.sqlite").read_bytes()
    ((wanted, creds, lazy_only),) = it.images.asked
    assert (creds, lazy_only) == ("user:secret", True) and wanted


async def test_an_order_that_is_sent_again_is_not_carried_out_again(it: Setting) -> None:
    """Its ticket tells; the answer is the same, and the image has no user more."""
    first = await mount(it)
    assert await mount(it) == first
    assert it.kernel.table == [ROOT] and len(it.rows) == 1
    assert [each.uses.count for each in it.images.made] == [1, 0]
    with pytest.raises(MountFailed, match="is a lazyfs mount already"):
        await mount(it, ticket="another")


@pytest.mark.parametrize("failing", ["image", "metadata", "make"])
async def test_an_order_that_fails_leaves_nothing(it: Setting, failing: str) -> None:
    """Neither a mount nor a user of the image; the next order is carried out."""
    if failing == "image":
        it.images.errors.append(Unreachable("the registry is away"))
    else:
        it.kernel.errors[failing] = MountFailed("it fails")
    with pytest.raises((Unreachable, MountFailed), match=r"away|fails"):
        await mount(it)
    assert it.remains == (0, 0, 0, 0)
    assert [(each.uses.count, each.given_up) for each in it.images.made] == ([] if failing == "image" else [(0, 1)])
    await mount(it)
    assert it.kernel.table == [ROOT]


async def test_two_orders_for_one_directory(it: Setting) -> None:
    """The second is refused while the first is carried out; orders for other directories are not."""
    it.images.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.mounting.mount, order_of(), it.notify)
        nursery.start_soon(it.mounting.mount, order_of("/other"), it.notify)
        await wait_all_tasks_blocked()
        for refused in (order_of(ticket="another"), order_of("/third", upper=ROOT)):
            with pytest.raises(MountFailed, match=f"another order for {ROOT}"):
                await it.mounting.mount(refused, it.notify)
        with pytest.raises(MountFailed, match="another order"):
            await it.mounting.unmount(UnmountOrder(ROOT))
        it.images.gate.set()
    assert sorted(it.kernel.table) == [ROOT, "/other"]
    with pytest.raises(MountFailed, match="already"):
        await mount(it, ticket="another")


async def test_an_upper_directory_is_of_one_mount(it: Setting) -> None:
    """Also of one that was detached, as long as it is in use."""
    await mount(it, upper="/upper")
    with pytest.raises(MountFailed, match=r"/upper takes the changes of the mount at /mnt\. "):
        await it.mounting.mount(order_of("/other", upper="/upper"), it.notify)
    it.kernel.busy = True
    await it.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    with pytest.raises(MountFailed, match="was detached and is still in use"):
        await it.mounting.mount(order_of("/other", upper="/upper"), it.notify)
    assert it.kernel.table == []


async def test_a_machine_that_cannot_is_tried_once(it: Setting) -> None:
    """The client may then mount portably."""
    it.kernel.verdict = ProbeResult(False, False, "no EROFS")
    for _ in range(2):
        with pytest.raises(NotNative, match="no EROFS"):
            await mount(it)
    assert it.kernel.done == ["try out"] and not it.images.asked


async def test_a_daemon_without_a_gate_mounts_nothing(it: Setting) -> None:
    """It is about to end."""
    it.mounting.has_gate = False
    with pytest.raises(MountFailed, match="is stopping"):
        await mount(it)
    assert it.remains == (0, 0, 0, 0) and not it.images.asked


async def test_cancelled_while_the_image_comes_to_lifetime(it: Setting) -> None:
    """Ctrl-C in the client: nothing is left, and the directory is free."""
    it.images.gate = trio.Event()
    with trio.move_on_after(5):
        await mount(it)
    assert it.remains == (0, 0, 0, 0) and not it.kernel.done[1:]
    it.images.gate.set()
    await mount(it)


async def test_cancelled_when_the_overlay_is_made(it: Setting) -> None:
    """A mount that nobody knows of is taken back, and its end waited for."""
    async with trio.open_nursery() as nursery:
        it.watch(nursery)
        with trio.CancelScope() as scope:
            it.kernel.on_make = scope.cancel
            await mount(it)
        assert scope.cancelled_caught and it.remains == (0, 0, 0, 0)
        (live,) = it.images.made
        assert (live.uses.count, live.given_up) == (0, 1)
        nursery.cancel_scope.cancel()


async def test_cancelled_and_in_use_already(it: Setting, expect_log: LogWatch) -> None:
    """Who is in it keeps it: the mount stays, and the log says so."""
    expect_log("was cancelled, but its mount cannot be removed")
    it.kernel.busy = True
    with trio.CancelScope() as scope:
        it.kernel.on_make = scope.cancel
        await mount(it)
    assert scope.cancelled_caught and it.remains == (1, 1, 1, 1)


async def test_unmounted(it: Setting) -> None:
    """The answer comes when the last of it is gone."""
    async with trio.open_nursery() as nursery:
        it.watch(nursery)
        await mount(it)
        assert await it.mounting.unmount(UnmountOrder(ROOT)) == UnmountResult(ROOT)
        assert it.remains == (0, 0, 0, 0)
        nursery.cancel_scope.cancel()
    with pytest.raises(MountFailed, match="not a mount of this lazyfsd"):
        await it.mounting.unmount(UnmountOrder(ROOT))


async def test_an_end_that_nobody_tells_of_is_waited_for_five_seconds(it: Setting) -> None:
    """And no longer; lazily, not at all."""
    await mount(it)
    began = trio.current_time()
    await it.mounting.unmount(UnmountOrder(ROOT))
    assert trio.current_time() - began == pytest.approx(5)
    await it.mounts.end(1)
    await mount(it)
    began = trio.current_time()
    await it.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert trio.current_time() == began


async def test_a_busy_mount_stays_or_is_detached(it: Setting) -> None:
    """What was said of it first is taken back where it could not be done."""
    await mount(it)
    it.kernel.busy = True
    with pytest.raises(MountFailed, match="busy"):
        await it.mounting.unmount(UnmountOrder(ROOT))
    assert it.rows == [(ROOT, "mounted")]
    it.kernel.errors["detach"] = MountFailed("not even that")
    with pytest.raises(MountFailed, match="not even that"):
        await it.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert it.rows == [(ROOT, "mounted")]
    await it.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert it.rows == [(ROOT, "detached")] and it.kernel.table == []
    assert it.mounts.live[1].row.phase == "detached"


async def test_of_two_mounts_at_one_place_the_latest_is_unmounted(it: Setting) -> None:
    """The other one was detached, and is still in use."""
    it.kernel.busy = True
    await mount(it)
    await it.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    await mount(it, ticket="another")
    await it.mounting.unmount(UnmountOrder(ROOT, lazy=True))
    assert [row.phase for row in it.state.rows()] == ["detached", "detached"]
    assert it.lifetime.uses.count == 2


async def test_an_order_of_a_found_mount_is_answered(it: Setting) -> None:
    """The process that carried it out died before it said so. Cancelled, the mount stays: somebody may know of it."""
    order: MountOrder = order_of()
    it.mounts.found(it.state.add(mount_of(ticket=order.ticket)), attached=True)
    it.images.gate = trio.Event()
    with trio.move_on_after(1):
        await it.mounting.mount(order, it.notify)
    assert len(it.mounts.live) == 1
    it.images.gate.set()
    assert (await it.mounting.mount(order, it.notify)).directory == ROOT
    assert it.images.made[-1].uses.count == 0 and it.kernel.done == []
