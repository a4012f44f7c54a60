"""lazyfsd: one gate, one store, many native mounts.

Order of a start: the FUSE connection first (requests to the previous process wait there), then the mounts of that process, then the control
socket, then everything that can wait. Before the connection is served, nothing touches a mount of lazyfs: the access would wait for an
answer that only this process can give.

It stops when nothing is mounted and no client is connected; as a service it keeps running. It ends with the connection: the gate is
unmounted, and /dev/fuse returns ENODEV when no overlay uses the gate any more.

Only the gate's connection can end the process by failing. All other tasks are supervised (lazyfs/tasks.py).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from lazyfs.containerd.handshakes import Handshakes
from lazyfs.daemon.config import Address, Config
from lazyfs.daemon.containers import sweep
from lazyfs.daemon.control import Notify, serve_control
from lazyfs.daemon.fdstore import FdStore
from lazyfs.daemon.holding import LISTENER
from lazyfs.daemon.inode_warm_up import InodeWarmUp
from lazyfs.daemon.lifetime import Lifetime
from lazyfs.daemon.mounting import MountHandler
from lazyfs.daemon.mounts import Mounts
from lazyfs.daemon.overlays import Overlays
from lazyfs.daemon.pulling import PullHandler
from lazyfs.daemon.recording import Recordings
from lazyfs.daemon.recovery import MountRecovery
from lazyfs.daemon.refresh import Refresher
from lazyfs.daemon.stack_dump import dump_stacks_on_signal
from lazyfs.daemon.state import State
from lazyfs.daemon.status import Measured, describe_mount, describe_repository
from lazyfs.daemon.watchdog import describe, feed
from lazyfs.errors import LazyfsError, StoreUnusable
from lazyfs.fuse.connection import Connection, serve_gate
from lazyfs.fuse.gate_operations import GateOperations
from lazyfs.gate.caller import Callers
from lazyfs.gate.catalog import Catalog
from lazyfs.gate.gate import Gate
from lazyfs.kernel.heap import share_arenas
from lazyfs.kernel.mountinfo import mounted_at
from lazyfs.kernel.unmount_events import UnmountEvents
from lazyfs.live.image import Images
from lazyfs.live.layers import Layers
from lazyfs.live.source import Sources
from lazyfs.mount.upkeep import Upkeep
from lazyfs.native.layers import LayerMounts
from lazyfs.native.stack import unmount_stack
from lazyfs.reports.orders import MountOrder, Order, PruneOrder, PullOrder, StatusOrder, UnmountOrder
from lazyfs.reports.results import UnmountResult
from lazyfs.reports.status import GateStatus, ServiceStatus
from lazyfs.reports.wire import Result
from lazyfs.store.folders import GATE
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

if TYPE_CHECKING:
    from lazyfs.daemon.plugin import Plugin

_log = logging.getLogger(__name__)

_NO_MOUNT: Final = "/"
"""No image is mounted at `/`: a status of it has no mounts, which is cheap."""
_SWEEP_PAUSE: Final = 60.0
_ORDER_CANCELLED: Final = "lazyfsd was stopped by a signal before this was done. What has arrived is kept: repeat the command"
_END_DEADLINE: Final = 5.0
"""Seconds that a stopping daemon waits for processes that still use its mounts."""


class Options(NamedTuple):
    """What lazyfsd was started with."""

    config: Config
    service: bool
    """Keep running when nothing is mounted."""

    @property
    def store(self) -> Path:
        """The state directory."""
        return self.config.store


def run(options: Options, fds: FdStore, handshakes: Handshakes) -> None:
    """Serve until nothing is mounted, or a signal comes. `handshakes` accepts on containerds' sockets. Raises LazyfsError."""
    share_arenas()
    dump_stacks_on_signal()
    trio.run(_serve, options, fds, handshakes)


async def _serve(options: Options, fds: FdStore, handshakes: Handshakes) -> None:
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(fds.listener("control"))
        lifetime = Lifetime(service=options.service)
        stack.enter_context(lifetime.stop_on_signals())
        store = stack.enter_context(await trio.to_thread.run_sync(Store.open, options.store))
        state = stack.enter_context(await trio.to_thread.run_sync(State, options.store))
        unmount_events = UnmountEvents()
        stack.callback(unmount_events.close)
        callers = stack.enter_context(Callers())
        async with trio.open_nursery() as nursery:
            service = Service(options, store, state, unmount_events, callers, nursery, lifetime)
            connection: Connection = await nursery.start(service.serve_gate, fds)
            await service.recover_mounts(same_gate=connection.taken_over)
            await service.start_containerds(fds, stack, same_gate=connection.taken_over)
            service.catalog.begin()
            sockets = await service.serve_containerds(fds, handshakes, stack)
            if options.config.store_size >= 0:
                set_limit = store.eviction.set_limit
                await service.tasks.attempt("store limit", trio.to_thread.run_sync, set_limit, options.config.store_size)
            service.begin(listener)
            if options.config.metrics is not None:
                await service.tasks.attempt("metrics", service.serve_metrics, options.config.metrics, stack)
            service.tasks.keep_running("watchdog", feed, fds, connection.directory, sockets, service.summary)
            fds.notify(f"READY=1\nSTATUS={await describe(service.summary)}")
            await lifetime.wait_for_end()
            fds.notify("STOPPING=1\nSTATUS=ending")
            await service.stop()
            await service.leave(connection)
            nursery.cancel_scope.cancel()
        await service.tasks.attempt("last sync", service.upkeep.stop)  # nothing arrives any more


class Service:
    """All parts of one lazyfsd; executes orders."""

    def __init__(
        self,
        options: Options,
        store: Store,
        state: State,
        unmount_events: UnmountEvents,
        callers: Callers,
        nursery: trio.Nursery,
        lifetime: Lifetime,
    ) -> None:
        self._options = options
        self._store = store
        self.tasks = Supervisor(nursery)
        self._layer_mounts = LayerMounts(store.directory.path)
        overlays = Overlays(store.directory.path, self._layer_mounts)
        self._lifetime = lifetime
        self._clients = trio.CancelScope()
        self.catalog = Catalog()
        self.recordings = Recordings(store)
        self._sources = Sources(store, self.catalog, self.tasks)
        self._layers = Layers(store, self.catalog, self.tasks)
        self.images = Images(store, self.catalog, self._sources, self._layers, self.tasks)
        self.mounts = Mounts(
            overlays, state, self.catalog, self.images, self.recordings, unmount_events, InodeWarmUp(self.tasks), lifetime
        )
        self.mounting = MountHandler(store, self.images, self.mounts, overlays)
        self.recovery = MountRecovery(state, self.images, self.mounts, overlays)
        self.pulling = PullHandler()
        self.gate = Gate(store, self.catalog, self.recordings.touched, callers.changes_metadata_only, self.tasks.failures)
        self.operations = GateOperations(self.gate)
        self.plugin: Plugin | None = None
        """Serves containerds, if there are any."""
        self._has_containerds = False
        self.refresher = Refresher(store, self.gate, self.catalog, self._overlays_on)
        self.upkeep = Upkeep(store, self.in_use, announced=self.gate.announced, on_evicted=self.refresher.refresh, exclusive=True)

    def begin(self, listener: socket.socket) -> None:
        """Start all tasks besides the gate's connection."""
        tasks = self.tasks
        tasks.keep_running("control socket", self.serve_clients, listener)
        tasks.keep_running("mount watch", self.mounts.handle_unmounts, tasks)
        tasks.keep_running("refresh of overlays", self.refresher.run)
        tasks.keep_running("store upkeep", self.upkeep.run, tasks)
        tasks.keep_running("removal of dead containers", self.sweep_containers)

    def in_use(self) -> InUse:
        """What mounted images need. The store itself sees which EROFS images are mounted."""
        documents = set()
        for live in self.images.live.values():
            documents |= {live.image.digest, live.image.manifest.config.digest, *(layer.toc_digest for layer in live.layers)}
        if self.plugin is not None:
            documents |= self.plugin.documents()
        return InUse(self.catalog.held(), documents)

    def _overlays_on(self, layers: set[str]) -> list[Path]:
        """The mount points of overlays on any of these live layers."""
        images = self.images.containing(layers)
        found = [Path(mount.row.mount.directory) for mount in self.mounts.live.values() if mount.image in images]
        return found if self.plugin is None else [*found, *self.plugin.roots_on(layers)]

    async def recover_mounts(self, *, same_gate: bool) -> None:
        """Find the mounts of an earlier process. If that fails, they and the gate stay until the next process finds them."""
        error = await self.tasks.attempt("recovery of mounts", partial(self.recovery.begin, self.tasks, same_gate=same_gate))
        if error is not None:
            _log.error(
                "the mounts of an earlier lazyfsd are not served until lazyfsd is restarted: %s", str(error) or repr(error)
            )
        if not self.recovery.is_complete:
            self._lifetime.uses.change(+1)  # by mounts that are not counted

    async def start_containerds(self, fds: FdStore, stack: AsyncExitStack, *, same_gate: bool) -> None:
        """Open the state of every containerd for which there is a socket, and resume its layers."""
        names = tuple(fds.named(LISTENER))
        if names:
            self._has_containerds = True
            await self.tasks.attempt("start of containerds", self._start_containerds, names, stack, same_gate)

    async def _start_containerds(self, names: Sequence[str], stack: AsyncExitStack, same_gate: bool) -> None:
        from lazyfs.daemon.plugin import new_plugin

        plugin = new_plugin(self._options.config, self._store, self._sources, self._layers, self._layer_mounts, self.tasks)
        await plugin.open(names, stack)
        self.plugin = plugin
        await plugin.start(same_gate=same_gate)

    async def serve_containerds(self, fds: FdStore, handshakes: Handshakes, stack: AsyncExitStack) -> dict[str, Path]:
        """Serve the containerds; returns their sockets by name."""
        if self.plugin is None:
            handshakes.close()
            return {}
        names = tuple(fds.named(LISTENER))
        listeners = {name: stack.enter_context(fds.listener(LISTENER + name)) for name in names}
        await self.plugin.serve(listeners, handshakes, stack)
        return {name: Path(listeners[name].getsockname()) for name in self.plugin.snapshotters}

    async def summary(self) -> str:
        """One line about what is served, for systemd."""
        parts = [f"{len(self.mounts.live)} mounts"]
        if self.plugin is not None:
            roots, layers = len(await self.plugin.roots()), len(self.plugin.layers.live)
            parts += [f"{roots} roots for {', '.join(self.plugin.snapshotters) or 'nobody'}", f"{layers} lazy layers in use"]
            parts += [f"{name} is not served: {reason}" for name, reason in self.plugin.unserved.items()]
        return "; ".join(parts)

    async def serve_gate(self, fds: FdStore, *, task_status: trio.TaskStatus[Connection]) -> None:
        """Serve the kernel until the connection has ended."""
        await serve_gate(self.operations, self._options.store / GATE, fds, task_status=task_status)
        self._lifetime.gate_ended.set()

    async def execute(self, order: Order, notify: Notify) -> Result:
        """Execute an order. Raises LazyfsError."""
        self._lifetime.was_asked = True
        match order:
            case MountOrder():
                if self._lifetime.is_over:
                    # The client sends the order again when this process has exited.
                    await trio.sleep(_END_DEADLINE)
                if order.store_size >= 0:
                    await trio.to_thread.run_sync(self._store.eviction.set_limit, order.store_size)
                return await self.mounting.mount(order, notify)
            case UnmountOrder():
                return self._with_keeper(await self.mounting.unmount(order))
            case StatusOrder():
                return await self._describe(order)
            case PullOrder():
                return await self.pulling.pull(order, notify)
            case PruneOrder():
                return await self.upkeep.prune(everything=order.everything, older_than=order.older_than)

    async def serve_clients(self, listener: socket.socket) -> None:
        """Execute orders until the daemon stops. A service leaves its mounts to the next daemon, and its clients send their orders again; any
        other daemon removes its mounts, and its orders end with an error."""
        if self._lifetime.stop_requested.is_set():
            return
        with trio.CancelScope() as self._clients:  # of its own: one cannot be entered again after a failure
            await serve_control(listener, os.geteuid(), self.execute, self._lifetime.uses, self.tasks, self._stop_message)

    def _stop_message(self) -> str:
        """The error for clients whose orders are cancelled; empty if the next daemon executes them."""
        return _ORDER_CANCELLED if self._lifetime.stop_requested.is_set() and not self._options.service else ""

    async def _describe(self, order: StatusOrder) -> ServiceStatus:
        chosen = [mount for mount in self.mounts.live.values() if order.directory in ("", mount.row.mount.directory)]
        failures = self.tasks.failures
        mounts = [
            await describe_mount(mount, self.images.live.get(mount.image), self._store, self.gate, failures) for mount in chosen
        ]
        containerds, repositories = await self.plugin.describe() if self.plugin is not None else ((), ())
        counts = {name: self.gate.counts[name] for name in ("published", "entries", "late", "reads", "errors")}
        return ServiceStatus(
            pid=os.getpid(),
            mounts=tuple(mounts),
            store=await self.upkeep.describe(),
            gate=GateStatus(**counts, latency=self.gate.latency.status()),
            containerds=tuple(containerds),
            repositories=tuple(repositories),
            failures=failures.counts(),
        )

    async def serve_metrics(self, address: Address, stack: AsyncExitStack) -> None:
        """Serve metrics until `stack` is closed. A failure is only a warning: containers do not depend on metrics."""
        try:
            from lazyfs.daemon.metrics import metrics_server
        except ImportError as error:
            _log.warning("cannot serve metrics: %s; pip install 'lazyfs[containerd]'", error)
        else:
            await stack.enter_async_context(metrics_server(address, self.measure))

    async def measure(self) -> Measured:
        """The values for lazyfs/daemon/metrics.py."""
        status = await self._describe(StatusOrder(_NO_MOUNT))
        images = [
            describe_repository(name.partition("@")[0], live.fetcher.statistics(), live.trouble)
            for name, live in self.images.live.items()
            if live.fetcher is not None
        ]
        return Measured(status, len(self.mounts.live), (*status.repositories, *images))

    def _with_keeper(self, result: UnmountResult) -> UnmountResult:
        """Add the keeper's pid, which the client waits for, if this was the last mount and the daemon now stops."""
        alone = self._lifetime.uses.count == 1  # the client itself
        return UnmountResult(result.directory, os.getppid()) if alone and not self.mounts.is_used else result

    async def sweep_containers(self) -> None:
        """Remove what killed `lazyfs run` processes left, until cancelled."""
        while True:
            swept = await trio.to_thread.run_sync(sweep, self._options.store, _unmount_root)
            if swept:
                _log.info("removed what was left of %s", ", ".join(swept))
            await trio.sleep(_SWEEP_PAUSE)

    async def _has_roots(self) -> bool:
        """Whether containerds may have roots mounted. If that cannot be found out, they have: their files depend on the gate."""
        if not self._has_containerds:
            return False
        roots: list[int] = []

        async def look() -> None:
            if self.plugin is None:
                raise StoreUnusable("nothing is known of the roots of containerds")
            roots.extend(await self.plugin.roots())

        return await self.tasks.attempt("count of roots", look) is not None or bool(roots)

    async def _unmount_all(self) -> None:
        async with trio.open_nursery() as nursery:
            tasks = self.tasks.within(nursery)
            for mount in list(self.mounts.live.values()):
                directory = mount.row.mount.directory
                tasks.start_soon("last unmount", self._unmount, directory, subject=directory)

    async def _unmount(self, directory: str) -> None:
        for lazy in (False, True):
            try:
                await self.mounting.unmount(UnmountOrder(directory, lazy=lazy))
            except LazyfsError as error:
                _log.warning("stopping: %s", error)
            else:
                return

    async def stop(self) -> None:
        """Stop before the process exits. On a signal, orders are cancelled, and what has arrived is synced while the mounts are removed, busy
        ones lazily; a service leaves its mounts to the next process. A failed step does not skip the next one."""
        tasks = self.tasks
        with trio.CancelScope(shield=True):
            if self._lifetime.stop_requested.is_set():
                self._clients.cancel()
                tasks.start_soon("last sync", self.upkeep.stop)
                if not self._options.service:
                    await tasks.attempt("last unmounts", self._unmount_all)
            await tasks.attempt("last records", self.recordings.end_all)
            await tasks.attempt("last unmount of layers", self.mounts.unmount_unused_layers)

    async def leave(self, connection: Connection) -> None:
        """Unmount the gate and serve it until it is unused; on a signal at most _END_DEADLINE. A service leaves it to the next process."""
        if self._options.service and (self.mounts.is_used or not self.recovery.is_complete or await self._has_roots()):
            return
        await connection.unmount()
        self.mounting.has_gate = False
        with trio.move_on_after(_END_DEADLINE if self._lifetime.stop_requested.is_set() else float("inf")) as patience:
            await self._lifetime.gate_ended.wait()
        if patience.cancelled_caught:
            _log.warning("mounts are still in use: files that they are missing can no longer be fetched")


def _unmount_root(root: Path) -> None:
    """Raises OSError if it is busy."""
    if mounted_at(root) is not None:
        unmount_stack(root)
