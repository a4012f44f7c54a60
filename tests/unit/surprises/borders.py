"""What talks to others: clients, containerd, systemd, the kernel's news of mounts."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import trio

from lazyfs.containerd.handshakes import SETTINGS
from lazyfs.containerd.relay import relay
from lazyfs.daemon import pulling, watchdog
from lazyfs.daemon.client import Client
from lazyfs.daemon.control import Execute, Notify, serve_control
from lazyfs.daemon.fdstore import FdStore
from lazyfs.daemon.holding import SOCKET_NAME
from lazyfs.daemon.inode_warm_up import InodeWarmUp
from lazyfs.daemon.lifetime import Lifetime
from lazyfs.daemon.mounts import LiveMount, Mounts
from lazyfs.daemon.overlays import Overlays
from lazyfs.daemon.pulling import PullHandler
from lazyfs.daemon.recording import Recordings
from lazyfs.daemon.state import MountRecord, Row, State
from lazyfs.errors import LazyfsError
from lazyfs.gate.catalog import Catalog
from lazyfs.live.uses import Uses
from lazyfs.mount.upkeep import Upkeep
from lazyfs.native.layers import LayerMounts
from lazyfs.reports.orders import Order, PruneOrder, PullOrder
from lazyfs.reports.results import PruneResult, PullResult
from lazyfs.reports.steps import Note
from lazyfs.reports.wire import Result
from lazyfs.store.in_use import InUse
from tests.unit.surprises.scene import PATIENCE, Scene, until

DONE = PruneResult(objects=1, documents=0, bytes=0, held_bytes=0, used_bytes=0)
PULLED = PullResult("", "", "", ())


def listener_at(scene: Scene, path: Path) -> socket.socket:
    listener = scene.stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(os.fspath(path))
    listener.listen()
    return listener


async def relayed(scene: Scene) -> None:
    """A caller who was begun with, and one who comes: who was cut off is told so, and whoever comes next is served."""
    listener, inner = listener_at(scene, scene.folder / "outer"), listener_at(scene, scene.folder / "inner")

    async def greet(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"!")
            await stream.receive_some()

    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(inner))
        nursery.start_soon(trio.serve_listeners, greet, [accepting])
        known, theirs = socket.socketpair()
        nursery.start_soon(relay, listener, scene.folder / "inner", tasks, [theirs])
        with trio.fail_after(PATIENCE):
            first = trio.SocketStream(trio.socket.from_stdlib_socket(known))
            greeted = await _heard(first, 1)
            for _ in range(2):
                heard = await _heard(await trio.open_unix_socket(os.fspath(scene.folder / "outer")), len(SETTINGS) + 1)
            assert heard == SETTINGS + b"!" and greeted in {b"", b"!"}
        nursery.cancel_scope.cancel()


async def _heard(stream: trio.SocketStream, count: int) -> bytes:
    """So many bytes, or fewer where it is cut off."""
    heard = b""
    async with stream:
        with suppress(trio.BrokenResourceError):
            while len(heard) < count and (more := await stream.receive_some(count - len(heard))):
                heard += more
    return heard


async def _ordered(scene: Scene, execute: Execute, order: Any) -> list[Any]:
    """What two clients hear, one after the other."""
    listener = listener_at(scene, scene.folder / SOCKET_NAME)
    heard: list[Any] = []
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        uses = Uses()
        nursery.start_soon(serve_control, listener, os.geteuid(), execute, uses, tasks)
        for _ in range(2):
            ask = lambda: list(Client(scene.folder).call(order, start=False))  # noqa: E731
            try:
                with trio.fail_after(PATIENCE):
                    heard.append((await trio.to_thread.run_sync(ask, abandon_on_cancel=True))[-1])
            except LazyfsError as error:
                heard.append(error)
        await until(lambda: not uses.count)
        nursery.cancel_scope.cancel()
    return heard


async def accepted(scene: Scene) -> None:
    """An accept that fails is tried again: both are answered."""

    async def execute(order: Order, notify: Notify) -> Result:
        return DONE

    assert await _ordered(scene, execute, PruneOrder()) == [DONE, DONE]


async def cut_off(scene: Scene) -> None:
    """A client that has said nothing yet sees the end of its connection; the next one is answered."""

    async def execute(order: Order, notify: Notify) -> Result:
        return DONE

    listener = listener_at(scene, scene.folder / SOCKET_NAME)
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        uses = Uses()
        nursery.start_soon(serve_control, listener, os.geteuid(), execute, uses, tasks)
        with trio.fail_after(PATIENCE):
            assert not await _heard(await trio.open_unix_socket(os.fspath(scene.folder / SOCKET_NAME)), 1)
            ask = lambda: list(Client(scene.folder).call(PruneOrder(), start=False))  # noqa: E731
            assert await trio.to_thread.run_sync(ask, abandon_on_cancel=True) == [DONE]
        await until(lambda: not uses.count)
        nursery.cancel_scope.cancel()


async def connected(scene: Scene) -> None:
    """One client gets an error, or is disconnected; the next one is served, and neither counts as a use afterwards."""

    async def execute(order: Order, notify: Notify) -> Result:
        await trio.sleep(0.01)
        return DONE

    first, second = await _ordered(scene, execute, PruneOrder())
    assert isinstance(first, LazyfsError) and second == DONE


async def pulled(scene: Scene) -> None:
    """The same for a pull whose progress cannot be sent."""

    async def pull_image(order: PullOrder, access: object, show: Any) -> Result:
        show(Note("on its way"))
        await trio.sleep(0.05)
        return PULLED

    scene.patch.setattr(pulling, "pull_image", pull_image)
    scene.patch.setattr(pulling, "MODULES", ())
    order = PullOrder("host/repo", "linux/amd64", "/containerd", "ns", "lazyfs")
    first, second = await _ordered(scene, PullHandler().pull, order)
    assert isinstance(first, LazyfsError) and "lazyfsd failed" in str(first) and second == PULLED


async def watched(scene: Scene) -> None:
    """A probe that fails costs one round without WATCHDOG=1; the next round sends it."""
    heard = scene.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    heard.bind(f"\0lazyfs-surprises-{os.getpid()}")
    fds = FdStore({}, f"@lazyfs-surprises-{os.getpid()}", watchdog=40.0)

    async def describe() -> str:
        return "well"

    async def looks(_: Path) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    scene.patch.setattr(watchdog, "_probe_gate", looks)
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        tasks.within(nursery).keep_running("watchdog", watchdog.feed, fds, scene.folder, {}, describe)
        with trio.fail_after(PATIENCE):
            said = await trio.socket.from_stdlib_socket(heard).recv(100)
        assert said == b"WATCHDOG=1\nSTATUS=well" and scene.failures.counts() == {"watchdog": 1}
        nursery.cancel_scope.cancel()


async def warmed_up(scene: Scene) -> None:
    """The descriptor of the tree is closed, and the next warm-up runs."""
    looked_at: list[int] = []

    async def run_process(*_: object, pass_fds: list[int], **__: object) -> None:
        await trio.sleep(0.001)
        looked_at.extend(pass_fds)

    scene.patch.setattr(trio, "run_process", run_process)
    async with scene.tasks() as tasks:
        warm_up = InodeWarmUp(tasks)
        for _ in range(2):
            warm_up.begin(os.open(scene.folder, os.O_RDONLY | os.O_DIRECTORY), "/mnt")
        await scene.until_failed("inode warm-up")
        await until(lambda: looked_at and not warm_up._limiter.borrowed_tokens)


async def ended(scene: Scene) -> None:
    """Two mounts that end together: who waits for the end of the one is woken, and the other is cleared up."""
    store = scene.store()
    state = scene.stack.enter_context(State(store.directory.path))
    bell = os.eventfd(1)
    scene.stack.callback(os.close, bell)

    class UnmountEvents:
        def __init__(self) -> None:
            self.left = [[1, 2]]

        def fileno(self) -> int:
            return bell

        def ended(self) -> list[int]:
            os.eventfd_read(bell)
            return self.left.pop()

    lifetime, catalog = Lifetime(service=True), Catalog()
    anything = cast("Any", UnmountEvents())
    overlays = Overlays(store.directory.path, LayerMounts(store.directory.path))
    mounts = Mounts(overlays, state, catalog, cast("Any", _Images()), Recordings(store), anything, anything, lifetime)
    live = {}
    for number in (1, 2):
        row = Row(number, "mounted", "", MountRecord(f"/{number}", "", "image", "", "", False, "off", "", False, ""))
        mounts._begin(LiveMount(row, "image", False, trio.Event()))
        mounts._watches[number] = number
        live[number] = mounts.live[number]
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        nursery.start_soon(mounts.handle_unmounts, tasks)
        with trio.fail_after(PATIENCE):
            for mount in live.values():
                await mount.ended.wait()
        assert not mounts.live and not mounts.is_used
        nursery.cancel_scope.cancel()


class _Images:
    def __init__(self) -> None:
        self.live: dict[str, object] = {}


async def kept(scene: Scene) -> None:
    """Upkeep of the store: one of the four tasks that fails is tried again, and the others are not restarted."""
    store = scene.store()
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        upkeep = Upkeep(store, InUse, exclusive=True)
        nursery.start_soon(upkeep.run, tasks)
        await until(scene.failures.counts)
        await until(lambda: upkeep._may_evict)
        assert sum(scene.failures.counts().values()) == 1
        nursery.cancel_scope.cancel()
