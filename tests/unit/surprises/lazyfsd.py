"""lazyfsd as a whole, without a kernel to serve: its status reports failures, and it stops as it should."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from lazyfs.containerd.handshakes import Handshakes
from lazyfs.daemon import lifetime, service
from lazyfs.daemon.client import Client
from lazyfs.daemon.config import Address, Config
from lazyfs.daemon.fdstore import FdStore
from lazyfs.daemon.holding import LISTENER, SOCKET_NAME
from lazyfs.daemon.service import Options, Service
from lazyfs.daemon.state import MountRecord, State
from lazyfs.fuse.connection import Connection
from lazyfs.mount import upkeep
from lazyfs.reports.orders import StatusOrder
from tests.unit.surprises.scene import PATIENCE, Scenario, Scene, until

_MOUNT = MountRecord("/nowhere", "", "host/repo@sha256:0", "oci:/nowhere", "linux/amd64", False, "off", "", False, "")


class Lazyfsd:
    """A running one."""

    service: Service

    def __init__(self, store: Path) -> None:
        self.store = store
        self.ended = trio.Event()
        self.heard: list[str] = []
        """What its keeper was told."""

    async def failures(self) -> dict[str, int]:
        """As a client gets it."""
        client = Client(self.store)
        ask = lambda: list(client.call(StatusOrder(), start=False))  # noqa: E731
        report = (await trio.to_thread.run_sync(ask, abandon_on_cancel=True))[-1]
        return dict(report.failures)


class _NoForcedExit:
    def begin(self) -> None:
        """It would end the tests."""


@asynccontextmanager
async def lazyfsd(
    scene: Scene, *, is_service: bool = True, has_containerd: bool = False, finds_mounts: bool = True
) -> AsyncIterator[Lazyfsd]:
    """From its start until it is stopped. It has a mount of an earlier process, and perhaps a containerd."""
    store = scene.folder / "store"
    scene.store().close()
    with State(store) as state:
        state.mark(state.add(_MOUNT).number, "detached", "")
    running = Lazyfsd(store)
    gone = trio.Event()

    class Gate(Connection):
        async def unmount(self) -> None:
            running.heard.append("the gate was taken away")
            gone.set()

    async def serve_gate(*_: object, task_status: trio.TaskStatus[Connection]) -> None:
        task_status.started(Gate(store, 1, taken_over=True))
        await gone.wait()

    class Known(Service):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            running.service = self
            scene.failures = self.tasks.failures

    scene.patch.setattr(service, "serve_gate", serve_gate)
    scene.patch.setattr(service, "Service", Known)
    scene.patch.setattr(lifetime, "ForcedExit", _NoForcedExit)
    scene.patch.setattr(lifetime, "SIGNALS", ())  # they would stay ignored afterwards
    listener = scene.stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(os.fspath(store / SOCKET_NAME))
    listener.listen()
    notified = scene.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    notified.bind(f"\0lazyfs-surprises-{os.getpid()}")
    descriptors = {"control": os.dup(listener.fileno())}
    if has_containerd:
        with socket.socket(socket.AF_UNIX) as containerds:
            containerds.bind(os.fspath(store / "one"))
            containerds.listen()
            descriptors[LISTENER + "one"] = os.dup(containerds.fileno())
    fds = FdStore(descriptors, f"@lazyfs-surprises-{os.getpid()}", watchdog=8.0)
    listener.close()

    async def serve() -> None:
        await service._serve(
            Options(Config(store=store, store_size=1 << 40, metrics=Address("127.0.0.1", 0)), is_service), fds, Handshakes({})
        )
        running.ended.set()

    async def hear() -> None:
        keeper = trio.socket.from_stdlib_socket(notified)
        while True:
            running.heard.append((await keeper.recv(1 << 16)).decode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(hear)
        await until(lambda: any("READY=1" in heard for heard in running.heard))
        if finds_mounts:
            scene.expect("/nowhere")
            await until(
                lambda: running.service.mounts.live and all(each.row.trouble for each in running.service.mounts.live.values())
            )
        yield running
        running.service._lifetime.stop_requested.set()
        with trio.fail_after(PATIENCE):
            await running.ended.wait()
        nursery.cancel_scope.cancel()


def goes_on(kind: str) -> Scenario:
    """It is retried or skipped, a client sees the failure in the status, and lazyfsd ends as usual."""

    async def scenario(scene: Scene) -> None:
        async with lazyfsd(scene) as running:
            await scene.until_failed(kind)
            assert (await running.failures())[kind] == 1

    return scenario


async def refused(scene: Scene) -> None:
    """A containerd whose snapshots cannot be opened: the status says so, mounts are served."""
    async with lazyfsd(scene, has_containerd=True) as running:
        scene.expect("containerd one is not served until lazyfsd is restarted: .*surprise")
        assert (await running.failures())["snapshots of a containerd"] == 1
        assert any("one is not served" in heard for heard in running.heard)


async def unrecovered(scene: Scene) -> None:
    """A lazyfsd that cannot find out what is mounted serves orders, keeps every row, and leaves the gate to the next one."""
    async with lazyfsd(scene, finds_mounts=False) as running:
        scene.expect("not served until lazyfsd is restarted: .*surprise")
        assert (await running.failures())["recovery of mounts"] == 1
        assert running.service._lifetime.uses.count
    assert "the gate was taken away" not in running.heard
    with State(running.store) as state:
        assert len(state.rows()) == 1


async def counted(scene: Scene) -> None:
    """A service that cannot count the roots of its containerds leaves them the gate."""
    async with lazyfsd(scene, has_containerd=True) as running:
        running.service.mounts.live.clear()
    assert "the gate was taken away" not in running.heard


async def watchdog(scene: Scene) -> None:
    """WATCHDOG=1 is sent all the same."""
    async with lazyfsd(scene) as running:
        await scene.until_failed("watchdog")
        await until(lambda: any("WATCHDOG=1" in heard for heard in running.heard))


async def ends(scene: Scene) -> None:
    """What fails at the end keeps it from none of the other steps."""
    for pause in ("_SYNC_INTERVAL", "_CHECK_INTERVAL"):
        scene.patch.setattr(upkeep, pause, 1e9)
    async with lazyfsd(scene, is_service=False) as running:
        stopped: list[str] = []
        end_all, unmount_unused_layers = running.service.recordings.end_all, running.service.mounts.unmount_unused_layers

        async def record() -> None:
            stopped.append("records")
            await end_all()

        async def drop() -> None:
            stopped.append("layers")
            await unmount_unused_layers()

        scene.patch.setattr(running.service.recordings, "end_all", record)
        scene.patch.setattr(running.service.mounts, "unmount_unused_layers", drop)
    assert "records" in stopped and "layers" in stopped


async def gate(scene: Scene) -> None:
    """Without its connection there is nothing to serve: the process ends, and the next one takes the connection over."""
    async with lazyfsd(scene):
        pass


async def until_stopped(_: Scene) -> None:
    """The wait for the end is lazyfsd's own: it ends with it."""
    await lifetime.Lifetime(service=True).wait_for_end()
