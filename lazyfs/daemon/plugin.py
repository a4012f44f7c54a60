"""The containerds that lazyfsd serves: for each a listening socket, and a snapshotter with its own database.

The keeper or systemd passes their sockets as `snapshots-NAME`; NAME is also the name of that containerd's folder, STORE/containerd/NAME.
The imports here cost 40 MB of memory: only a lazyfsd that has such a socket, or was asked to pull, makes them.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

import trio

from lazyfs.containerd.handshakes import Handshakes
from lazyfs.containerd.lazy_layers import LazyLayers
from lazyfs.containerd.mounts import SnapshotFolders
from lazyfs.containerd.relay import relay
from lazyfs.containerd.resolver import LayerResolver
from lazyfs.containerd.roots import Roots
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.daemon.config import Config
from lazyfs.daemon.containerds import describe_containerd, describe_repositories, unserved_containerd
from lazyfs.daemon.pulling import MODULES
from lazyfs.errors import StoreFull, StoreUnusable
from lazyfs.format.digest import Digest, digest_of
from lazyfs.live.layers import Layers
from lazyfs.live.pulls import Pulls
from lazyfs.live.source import Sources
from lazyfs.native.layers import LayerMounts
from lazyfs.registry.access import AccessOptions
from lazyfs.reports.status import ContainerdStatus, RepositoryStatus
from lazyfs.source.open import open_source
from lazyfs.source.protocol import ImageSource
from lazyfs.source.reference import parse_reference
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_RUN: Final = Path("/run")


class Plugin:
    """Serves all containerds. `new_plugin` makes it."""

    def __init__(
        self,
        store: Path,
        layers: LazyLayers,
        open_snapshotter: Callable[[Path], Snapshotter],
        roots_in: Callable[[Path], Roots],
        tasks: Supervisor,
    ) -> None:
        """`open_snapshotter` and `roots_in` take the folder of a containerd, STORE/containerd/NAME. The former is blocking."""
        self._store = store
        self._open_snapshotter = open_snapshotter
        self._roots_in = roots_in
        self._tasks = tasks
        self.layers = layers
        self.snapshotters: dict[str, Snapshotter] = {}
        self.unserved: dict[str, str] = {}
        """Why containerds are not served, by name."""
        self._unserved_roots: list[Roots] = []
        self._half_started: list[Snapshotter] = []
        """Snapshotters of containerds that are not served: roots that were mounted are still read, and their layers may be live."""

    async def open(self, names: Sequence[str], stack: AsyncExitStack) -> None:
        """Open the state of the containerds with these names.

        One that cannot be used gets an error for every call, so that the others and all mounts are served.
        """
        for name in names:
            folder = self._store / "containerd" / name
            try:
                snapshotter = await trio.to_thread.run_sync(self._open_snapshotter, folder)
            except (StoreUnusable, StoreFull) as error:
                self._refuse(name, error)
            except Exception as surprise:  # noqa: BLE001  that containerd's problem
                self._refuse(name, self._tasks.failures.record("snapshots of a containerd", surprise, name))
            else:
                stack.callback(snapshotter.close)
                self.snapshotters[name] = snapshotter
                continue
            self._unserved_roots.append(self._roots_in(folder))

    def _refuse(self, name: str, error: Exception) -> None:
        reason = str(error) or repr(error)
        _log.error("containerd %s is not served until lazyfsd is restarted: %s", name, reason)
        self.unserved[name] = reason
        snapshotter = self.snapshotters.pop(name, None)
        if snapshotter is not None:
            self._half_started.append(snapshotter)

    async def start(self, *, same_gate: bool) -> None:
        """Take over what an earlier process left of all containerds. Without `same_gate`, the gate of mounted roots is dead.

        One that fails is not served.
        """
        for name, snapshotter in tuple(self.snapshotters.items()):
            error = await self._tasks.attempt("start of a containerd", _start, snapshotter, same_gate, subject=name)
            if error is not None:
                self._refuse(name, error)
        if not same_gate:  # a later process would take them for intact
            for roots in (*self._unserved_roots, *(each.roots for each in self._half_started)):
                await self._tasks.attempt("unmount of dead roots", trio.to_thread.run_sync, _unmount_all, roots)

    async def serve(self, listeners: Mapping[str, socket.socket], handshakes: Handshakes, stack: AsyncExitStack) -> None:
        """Serve each containerd at its socket until `stack` is closed. If none can be served, waiting callers are disconnected."""
        error = await self._tasks.attempt("service of containerds", self._serve, listeners, handshakes, stack)
        if error is not None:
            for name in listeners:
                if name not in self.unserved:
                    self._refuse(name, error)
            handshakes.close()

    async def _serve(self, listeners: Mapping[str, socket.socket], handshakes: Handshakes, stack: AsyncExitStack) -> None:
        # Imported after the gate is served, because it takes 0.1 s.
        server = await trio.to_thread.run_sync(import_module, "lazyfs.containerd.server")
        self._tasks.start_soon("import ahead", _import_ahead)
        private = stack.enter_context(_private_folder(self._store))
        for name in listeners:
            snapshotter = self.snapshotters.get(name)
            if snapshotter is not None:
                answers = server.serve_snapshotter(snapshotter, private / name, self._tasks.failures)
                error = await self._tasks.attempt("service of a containerd", stack.enter_async_context, answers, subject=name)
                if error is None:
                    continue
                self._refuse(name, error)
            refusals = server.serve_refusals(self.unserved[name], private / name)
            await self._tasks.attempt("refusals to a containerd", stack.enter_async_context, refusals, subject=name)
        begun = handshakes.stop()
        for name, listener in listeners.items():
            # Used once: a relay that is started again begins without them.
            first = iter(begun.get(name, ()))
            self._tasks.keep_running("relay", relay, listener, private / name, self._tasks, first, subject=name)

    def roots_on(self, layers: set[str]) -> list[Path]:
        """The mount points of roots on any of these live layers."""
        return [root for snapshotter in self._opened() for root in snapshotter.roots_on(layers)]

    def documents(self) -> set[Digest]:
        """Documents that must stay in the store."""
        return self.layers.documents()

    async def describe(self) -> tuple[tuple[ContainerdStatus, ...], tuple[RepositoryStatus, ...]]:
        """The status of all containerds, and of the repositories in use."""
        statuses = []
        for name, snapshotter in self.snapshotters.items():
            statuses.append(await trio.to_thread.run_sync(describe_containerd, name, snapshotter, self.layers))
        statuses += [unserved_containerd(name, reason) for name, reason in self.unserved.items()]
        return tuple(statuses), describe_repositories(self.layers)

    async def roots(self) -> list[int]:
        """The numbers of all snapshots with a mounted root, including those of containerds that are not served."""
        found: list[int] = []
        for roots in (*(each.roots for each in self._opened()), *self._unserved_roots):
            found += await trio.to_thread.run_sync(roots.mounted)
        return found

    def _opened(self) -> tuple[Snapshotter, ...]:
        return (*self.snapshotters.values(), *self._half_started)


def new_plugin(config: Config, store: Store, sources: Sources, layers: Layers, mounts: LayerMounts, tasks: Supervisor) -> Plugin:
    """The plugin of a lazyfsd: all containerds share its sources, layers and pulls."""
    pulls = Pulls(store, tasks, rest=config.background)
    lazy_layers = LazyLayers(sources, layers, pulls, partial(_open, config.plain_http), tasks)
    resolver = LayerResolver(store, lazy_layers, tasks)
    path = store.directory.path

    def open_snapshotter(folder: Path) -> Snapshotter:
        return Snapshotter(store, folder, lazy_layers, resolver, mounts, tasks)

    def roots_in(folder: Path) -> Roots:
        return Roots(path, SnapshotFolders.of_containerd(folder), mounts)

    return Plugin(path, lazy_layers, open_snapshotter, roots_in, tasks)


async def _start(snapshotter: Snapshotter, same_gate: bool) -> None:
    if not same_gate:
        await trio.to_thread.run_sync(snapshotter.roots.mark_dead)
    await snapshotter.start()


def _unmount_all(roots: Roots) -> None:
    for number in roots.mounted():
        roots.unmount(number)


async def _import_ahead() -> None:
    """Import the modules of pulls and registries ahead of time: 40 ms."""
    for module in MODULES:
        try:
            await trio.to_thread.run_sync(import_module, module)
        except ImportError as error:  # the code that needs it reports it
            _log.info("%s cannot be imported: %s", module, error)


@contextmanager
def _private_folder(store: Path) -> Iterator[Path]:
    """The folder of grpcio's own sockets: the store's path may be too long for a socket. Leftovers of an earlier process are removed.

    Raises StoreUnusable.
    """
    folder = _RUN / f"lazyfsd-{digest_of(bytes(store.resolve()))[7:23]}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StoreUnusable(f"{folder} cannot be made, for the sockets of grpcio: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open(plain_http: Container[str], repository: str) -> ImageSource:
    """The source of a repository `docker://HOST/REPO`, with the credentials of root's docker configuration."""
    reference = parse_reference(repository)
    return open_source(reference, AccessOptions(plain_http=reference.host.lower() in plain_http))
