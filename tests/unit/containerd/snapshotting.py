"""A snapshotter with a real database and real directories, over layers, metadata and mounts that a test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from lazyfs.containerd.lazy_layers import LazyLayers
from lazyfs.containerd.mounts import SnapshotFolders
from lazyfs.containerd.resolver import LayerResolver, Resolved
from lazyfs.containerd.roots import Roots
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.erofs.image import write_image
from lazyfs.errors import LazyfsError
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.manifest import OCI_LAYER_GZIP
from lazyfs.live.quiet_period import QuietPeriod
from lazyfs.live.uses import Uses
from lazyfs.native.layers import LayerMounts
from lazyfs.snapshots.labels import TARGET, Claim
from lazyfs.snapshots.snapshot import LazyLayer, Snapshot
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

ROOT = Entry(b"", "dir", 0o711, 7, 8)
"""The root directory of every lazy layer."""


def name_of(lazy: LazyLayer) -> str:
    return str(lazy.digest)


def lazy_layer(number: int) -> LazyLayer:
    return LazyLayer(
        "docker://registry.test/image", digest_of(b"blob %d" % number), 1000, OCI_LAYER_GZIP, digest_of(b"TOC %d" % number), 500
    )


def labels_of(number: int) -> dict[str, str]:
    """What containerd's client says of a layer that it wants lazy."""
    lazy = lazy_layer(number)
    return {
        TARGET: f"chain-{number}",
        "containerd.io/snapshot/cri.image-ref": "registry.test/image:v1",
        "containerd.io/snapshot/cri.layer-digest": lazy.digest,
        "containerd.io/snapshot/stargz/toc.digest": lazy.toc_digest,
    }


class ScriptedLayers:
    """Layers whose uses are counted by name, and nothing else."""

    def __init__(self) -> None:
        self.quiet_period = QuietPeriod()
        self.live: dict[str, Any] = {}
        self.expected: list[str] = []
        """By snapshots that are lazy."""
        self.pulled: list[str] = []
        self.resumed: list[str] = []
        self.refused: dict[str, Exception] = {}
        """Layers that cannot be used, by name."""

    def add(self, lazy: LazyLayer) -> None:
        self.expected.append(name_of(lazy))

    def drop(self, lazy: LazyLayer) -> None:
        self.expected.remove(name_of(lazy))

    def pull(self, lazy: LazyLayer, index: object = None) -> Any:
        self.pulled.append(name_of(lazy))
        pieces = [SimpleNamespace(content=SimpleNamespace(name=f"object of {lazy.digest}"))]

        async def known() -> Any:
            return SimpleNamespace(objects=SimpleNamespace(layer=SimpleNamespace(pieces=pieces)))

        return SimpleNamespace(known=known)

    async def resume(self, layers: Iterable[LazyLayer]) -> None:
        self.resumed += map(name_of, layers)

    def use(self, lazy: LazyLayer) -> Any:
        if error := self.refused.get(name_of(lazy)):
            raise error
        live = self.live.setdefault(name_of(lazy), SimpleNamespace(name=name_of(lazy), uses=Uses()))
        live.uses.change(+1)
        return live

    @property
    def uses(self) -> dict[str, int]:
        """Of each layer that was ever in use: how many use it."""
        return {name: live.uses.count for name, live in self.live.items()}

    def used(self) -> list[int]:
        """The numbers of the layers that something uses."""
        return [number for number in range(9) if self.uses.get(name_of(lazy_layer(number)))]


class ScriptedResolving:
    """Claims that are answered when a test lets them: `gate`; or fail: `errors`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.gate = trio.Event()
        self.gate.set()
        self.ready = trio.Event()
        """Set while metadata can be built."""
        self.ready.set()
        self.asked: list[str] = []
        """The targets of claims."""
        self.error: LazyfsError | None = None
        self.lost: LazyfsError | None = None
        """Why metadata cannot be had any more."""
        self.built: list[list[str]] = []
        """The names in each stack, the lowest first."""

    async def resolve(self, claim: Claim) -> Resolved:
        self.asked.append(claim.target)
        await self.gate.wait()
        if self.error:
            raise self.error
        return Resolved(lazy_layer(int(claim.target.removeprefix("chain-"))), cast(Any, None))

    async def build(self, stack: Sequence[LazyLayer | Path]) -> tuple[Path, ...]:
        await self.ready.wait()
        if self.lost:
            raise self.lost
        images = tuple(each if isinstance(each, Path) else self._image(each) for each in stack)
        self.built.append([image.name for image in images])
        return images

    def _image(self, lazy: LazyLayer) -> Path:
        path = self._folder / lazy.digest[7:15]
        with path.open("wb") as file:
            write_image([ROOT], file)
        return path


class ScriptedRoots(Roots):
    """Mounts that are a set of numbers; `done` is what was asked."""

    def __init__(self, store: Path, folders: SnapshotFolders) -> None:
        super().__init__(store, folders, LayerMounts(store))
        self.there: set[int] = set()
        self.done: list[str] = []
        self.error: Exception | None = None

    def mounted(self) -> set[int]:
        return set(self.there)

    def ensure(self, snapshot: Snapshot, images: Sequence[Path]) -> Path:
        self.done.append(f"ensure {snapshot.key}")
        if self.error:
            raise self.error
        self.there.add(snapshot.id)
        return self._folders.root(snapshot.id)

    def lower(self, number: int, images: Sequence[Path]) -> tuple[Path, ...]:
        self.done.append(f"lower {number}")
        if self.error:
            raise self.error
        return tuple(Path("/lower", image.name) for image in images)

    def unmount(self, number: int) -> None:
        self.done.append(f"take away {number}")
        self.there.discard(number)

    def unmount_unused_layers(self) -> None:
        self.done.append("drop layers")


class Setting:
    """One process of lazyfsd, as far as one containerd sees it."""

    def __init__(self, store: Store, folder: Path, nursery: trio.Nursery) -> None:
        self.layers = ScriptedLayers()
        self.resolver = ScriptedResolving(folder.parent)
        self.folders = SnapshotFolders.of_containerd(folder)
        self.snapshotter = Snapshotter(
            store,
            folder,
            cast(LazyLayers, self.layers),
            cast(LayerResolver, self.resolver),
            LayerMounts(store.directory.path),
            Supervisor(nursery),
        )
        self.roots = ScriptedRoots(store.directory.path, self.folders)
        self.snapshotter.roots = self.roots

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Key and kind of all snapshots; a lazy one's kind is `lazy`."""
        found = [row for page in self.snapshotter.pages(()) for row in page]
        return [(row.key, "lazy" if row.lazy else row.kind) for row in found]

    @property
    def directories(self) -> list[int]:
        return sorted(self.roots.directories())


@asynccontextmanager
async def snapshotting(store: Store, folder: Path) -> AsyncIterator[Setting]:
    """A process that ends with the block; its database is what the next one finds."""
    async with trio.open_nursery() as nursery:
        setting = Setting(store, folder, nursery)
        try:
            yield setting
        finally:
            nursery.cancel_scope.cancel()
            setting.snapshotter.close()
