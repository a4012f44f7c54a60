"""The snapshotter of one containerd: what Prepare, Mounts, Commit and their likes do.

A Prepare that names its target (`containerd.io/snapshot.ref`) is containerd asking for a layer: one that can be lazy is committed at
once, and the answer is that it exists already; containerd then neither fetches nor unpacks it. Whatever stands in the way of that
is not an error, which would end the whole pull, but a reason: the answer is an overlay_mounts directory, and containerd unpacks the layer.

containerd's garbage collector calls Remove, List and Cleanup while it holds a lock of its own: they wait for sqlite, and for
nothing else. What has to be unmounted and removed from the disk for them is, behind their backs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import uuid4

import trio

from lazyfs.containerd.lazy_layers import LazyLayers, layer_of, name_of
from lazyfs.containerd.mounts import MountSpec, SnapshotFolders, bind, overlay_mounts
from lazyfs.containerd.resolver import DEADLINE, LayerResolver
from lazyfs.containerd.roots import INDEX_OFF, Roots
from lazyfs.containerd.unpacked import strip, usage
from lazyfs.erofs.reader import inherited_from
from lazyfs.errors import LazyfsError, LocalError, SnapshotBusy, SnapshotExists, SnapshotNotFound, StoreUnusable
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.format.digest import digest_of
from lazyfs.live.layer import LiveLayer, load_again
from lazyfs.native.layers import LayerMounts
from lazyfs.snapshots.database import Snapshots
from lazyfs.snapshots.labels import REMOTE, REMOTE_VALUE, TARGET, Claim, Ordinary, is_extract, read_labels
from lazyfs.snapshots.snapshot import LazyLayer, Snapshot, shown
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)


class Usage(NamedTuple):
    """What a snapshot takes on disk."""

    inodes: int
    size: int
    """Bytes."""


class Snapshotter:
    """One containerd's. Not for threads, except where it says so."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        layers: LazyLayers,
        resolver: LayerResolver,
        mounts: LayerMounts,
        tasks: Supervisor,
    ) -> None:
        """`folder` is its own, STORE/containerd/NAME. Blocking. Raises StoreUnusable, also where a row is damaged."""
        self._store = store
        self._layers = layers
        self._resolver = resolver
        self._tasks = tasks
        self._folders = SnapshotFolders.of_containerd(folder)
        try:
            self._folders.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnusable(f"{self._folders.folder} cannot be made: {error.strerror}") from error
        self._session = str(uuid4())
        self.snapshots = Snapshots(folder, self._session)
        try:
            self._found = [snapshot for page in self.snapshots.pages() for snapshot in page]
            """What an earlier process left, until `start`."""
        except BaseException:
            self.snapshots.close()
            raise
        self.roots = Roots(store.directory.path, self._folders, mounts)
        self._unrecorded: dict[str, Snapshot] = {}
        """Lazy ones whose objects will be noted in a moment."""
        self._used_layers: dict[int, tuple[LiveLayer, ...]] = {}
        """By the number of a snapshot whose root is mounted: the live layers that it uses."""

    def close(self) -> None:
        """Mounts stay. Blocking."""
        self.snapshots.close()

    async def start(self) -> None:
        """What a new process does about what the earlier one left: layers of mounted roots live again, pulls go on, leftovers go."""
        mounted = await trio.to_thread.run_sync(self.roots.mounted)
        wanted: dict[str, LazyLayer] = {}
        found, self._found = self._found, []
        for snapshot in found:
            if snapshot.lazy is not None:
                wanted[name_of(snapshot.lazy)] = snapshot.lazy
                self._layers.add(snapshot.lazy)
            elif snapshot.id in mounted:
                self._use_layers(snapshot, await trio.to_thread.run_sync(self.snapshots.ancestry, snapshot.key))
        self._tasks.keep_running("pulls of an earlier process", self._layers.resume, tuple(wanted.values()))
        for snapshot in await trio.to_thread.run_sync(self.snapshots.without_objects):
            self._tasks.start_soon("note of a layer's objects", self._record_objects_later, snapshot, subject=shown(snapshot.key))
        self._tasks.keep_running("removal of what an earlier process left", self.cleanup)

    async def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], kind: Literal["active", "view"] = "active"
    ) -> tuple[MountSpec, ...]:
        """A new snapshot, and what to mount for it. Raises SnapshotExists for a layer that is lazy; SnapshotError, LocalError."""
        self._layers.quiet_period.note_request()
        asked = read_labels(labels) if kind == "active" else Ordinary("")
        reason = asked.reason if isinstance(asked, Ordinary) else await self._commit_lazy(asked, parent, labels)
        if reason:
            _log.warning("%s is not lazy: the layer %s", key, reason)
        snapshot = await trio.to_thread.run_sync(partial(self.snapshots.create, key, parent, kind, labels, reason=reason))
        try:
            chain = await trio.to_thread.run_sync(self.snapshots.ancestry, key)
            images = await self._images(chain[1:])
            await trio.to_thread.run_sync(self._make_directories, snapshot, chain[1:], images)
            return await self._mounts_of(snapshot, chain, images)
        except BaseException:
            # What an earlier process has made may have been told of, and be in use.
            if snapshot.session == self._session:
                with trio.CancelScope(shield=True):
                    await self._undo(snapshot)
            raise

    async def mounts(self, key: str) -> tuple[MountSpec, ...]:
        """What to mount for an active snapshot or a view. Raises SnapshotNotFound, SnapshotBusy; LocalError."""
        snapshot = await trio.to_thread.run_sync(self.snapshots.stat, key)
        if snapshot.kind == "committed":
            raise SnapshotBusy(f"the snapshot {shown(key)} is committed: it is mounted by preparing another one on it")
        chain = await trio.to_thread.run_sync(self.snapshots.ancestry, key)
        images = await self._images(chain[1:])
        if not await trio.to_thread.run_sync(self._has_directories, snapshot):
            _log.warning("the directories of %s are missing, and with them its changes: created empty ones", key)
            await trio.to_thread.run_sync(self._make_directories, snapshot, chain[1:], images)
        return await self._mounts_of(snapshot, chain, images)

    async def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make a committed snapshot of an active one. Raises SnapshotError, LocalError."""
        try:
            snapshot = await trio.to_thread.run_sync(self.snapshots.stat, key)
        except SnapshotNotFound:
            # Unless it is a call that an earlier process has carried out.
            await trio.to_thread.run_sync(self.snapshots.commit, key, name, labels, 0, 0)
            return
        await trio.to_thread.run_sync(self._commit, snapshot, name, labels)
        self._release_layers(snapshot.id)

    async def remove(self, key: str) -> None:
        """Forget a snapshot; what it had goes later. Raises SnapshotError, LocalError."""
        snapshot = await trio.to_thread.run_sync(self.snapshots.remove, key)
        self._release_layers(snapshot.id)
        if snapshot.lazy is not None:
            self._layers.drop(snapshot.lazy)
        self._remove_later(snapshot.id)

    async def stat(self, key: str) -> Snapshot:
        """Raises SnapshotNotFound."""
        return await trio.to_thread.run_sync(self.snapshots.stat, key)

    async def update(self, key: str, labels: Mapping[str, str], fieldpaths: Sequence[str]) -> Snapshot:
        """Change labels. Raises SnapshotNotFound, BadSnapshot."""
        return await trio.to_thread.run_sync(self.snapshots.update, key, labels, fieldpaths)

    def pages(self, filters: Sequence[str]) -> Iterator[tuple[Snapshot, ...]]:
        """Blocking, for any thread. See Snapshots."""
        return self.snapshots.pages(filters)

    async def usage(self, key: str) -> Usage:
        """What a snapshot takes. Raises SnapshotNotFound."""
        snapshot = await trio.to_thread.run_sync(self.snapshots.stat, key)
        if snapshot.lazy is not None:
            for each in tuple(self._unrecorded.values()):  # what an older one names is counted there
                await self._record_objects(each)
            names = await trio.to_thread.run_sync(self.snapshots.first_objects, key)
            return Usage(*await trio.to_thread.run_sync(self._store.usage, names))
        if snapshot.kind != "active":
            return Usage(snapshot.inodes, snapshot.size)
        return Usage(*await trio.to_thread.run_sync(usage, self._folders.fs(snapshot.id)))

    async def cleanup(self) -> None:
        """Remove what belongs to no snapshot, behind the caller's back."""
        # Directories first: one that comes meanwhile has a row already.
        there = await trio.to_thread.run_sync(self.roots.directories)
        known = await trio.to_thread.run_sync(self.snapshots.ids)
        for number in set(there) - known:
            self._remove_later(number)
        # Somebody may have held a root when its snapshot was removed.
        self._tasks.start_soon("unmount of layers", trio.to_thread.run_sync, self.roots.unmount_unused_layers)

    def _remove_later(self, number: int) -> None:
        """What a removed snapshot had. What is left where that fails goes with the next cleanup."""
        self._tasks.start_soon(
            "removal of a snapshot", trio.to_thread.run_sync, self.roots.remove, number, subject=f"number {number}"
        )

    async def _commit_lazy(self, claim: Claim, parent: str, labels: Mapping[str, str]) -> str:
        """Why the layer cannot be lazy. Raises SnapshotExists where it is; SnapshotError for a parent that cannot be one."""
        name = lazy_name(claim.target, parent)
        with suppress(SnapshotNotFound):
            known = await trio.to_thread.run_sync(self.snapshots.stat, name)
            if known.lazy is not None:
                raise SnapshotExists(f"the layer {claim.target} is lazy, and ready")
        reason = f"could not be resolved within {DEADLINE:.0f} s"
        with trio.move_on_after(DEADLINE):
            try:
                resolved = await self._resolver.resolve(claim)
                below = await trio.to_thread.run_sync(self.snapshots.ancestry, parent) if parent else ()
                await self._resolver.build([*self._stack(below), resolved.lazy])
            except LazyfsError as error:
                if isinstance(error, LocalError):
                    _log.warning("cannot serve layer %s lazily: %s", claim.digest, error)
                return f"{claim.digest} cannot be lazy: {error}"
            except Exception as surprise:  # noqa: BLE001  a defect costs containerd a lazy layer, and not a pull
                cause = self._tasks.failures.record("lazy layer", surprise, claim.digest)
                return f"{claim.digest} cannot be lazy: lazyfsd failed: {cause!r}"
            reason = ""
        if reason:
            return reason
        with trio.CancelScope(shield=True):
            marked = {**labels, TARGET: claim.target, REMOTE: REMOTE_VALUE}
            with suppress(SnapshotExists):  # another Prepare of the same layer was quicker
                snapshot = await trio.to_thread.run_sync(self.snapshots.commit_lazy, name, parent, marked, resolved.lazy)
                self._layers.add(resolved.lazy)
                live = self._layers.pull(resolved.lazy, resolved.layer_index)
                key = shown(snapshot.key)
                self._tasks.start_soon("note of a layer's objects", self._record_objects_later, snapshot, live, subject=key)
        raise SnapshotExists(f"the layer {claim.target} is lazy, and ready")

    async def _record_objects_later(self, snapshot: Snapshot, live: LiveLayer | None = None) -> None:
        """A pull does not wait for it: whoever asks for the usage before that does."""
        self._unrecorded[snapshot.key] = snapshot
        await self._layers.quiet_period.wait()
        if snapshot.key in self._unrecorded:
            await self._record_objects(snapshot, live)

    async def _record_objects(self, snapshot: Snapshot, live: LiveLayer | None = None) -> None:
        """For its usage. Where the layer is on its way to be indexed, from there: a TOC is much to read for that."""
        lazy = snapshot.lazy
        assert lazy is not None
        kept = None
        if live is not None:
            with trio.move_on_after(DEADLINE), suppress(StoreUnusable):
                kept = await live.known()
        try:
            if kept is not None:
                names = await trio.to_thread.run_sync(_names, kept.objects.layer.pieces)
            else:
                names = await trio.to_thread.run_sync(_objects_of, self._store, lazy)
            await trio.to_thread.run_sync(self.snapshots.add_objects, lazy.toc_digest, names)
        except LazyfsError as error:
            _log.warning("cannot record the disk usage of layer %s: %s", lazy.digest, error)
        self._unrecorded.pop(snapshot.key, None)

    async def _images(self, below: Sequence[Snapshot]) -> tuple[Path, ...]:
        """The metadata of the committed snapshots `below`, the uppermost first, from the lowest up: EROFS images, and directories that
        were unpacked. Nothing where none is lazy. Raises LazyfsError: what was lost of the store cannot be had again."""
        if all(each.lazy is None for each in below):
            return ()
        return await self._resolver.build(self._stack(below))

    async def _mounts_of(self, snapshot: Snapshot, chain: Sequence[Snapshot], images: Sequence[Path]) -> tuple[MountSpec, ...]:
        """`chain`: itself and what it stands on; `images`: the metadata of that."""
        if not images:
            lower = [self._folders.fs(each.id) for each in reversed(chain[1:])]
            return overlay_mounts(snapshot, self._folders, lower, index_off=INDEX_OFF)
        if snapshot.kind == "active" and is_extract(snapshot.key):
            # The unpacker writes into the upper directory, and looks for parents' owners in the lower ones: metadata is all it needs.
            lower = list(await trio.to_thread.run_sync(self._lower, snapshot.id, images))
            return overlay_mounts(snapshot, self._folders, lower, index_off=INDEX_OFF)
        self._use_layers(snapshot, chain)
        root = await trio.to_thread.run_sync(self.roots.ensure, snapshot, images)
        return bind(root, read_only=snapshot.kind == "view")

    def _stack(self, chain: Sequence[Snapshot]) -> list[LazyLayer | Path]:
        """The layers of a chain of committed snapshots, from the lowest up."""
        return [each.lazy or self._folders.fs(each.id) for each in reversed(chain)]

    def _lower(self, number: int, images: Sequence[Path]) -> tuple[Path, ...]:
        try:
            return self.roots.lower(number, images)
        except OSError as error:
            raise StoreUnusable(f"a layer's metadata image cannot be mounted: {error}") from error

    def _use_layers(self, snapshot: Snapshot, chain: Sequence[Snapshot]) -> None:
        """The layers of a root live as long as it does."""
        if snapshot.id not in self._used_layers:
            self._used_layers[snapshot.id] = tuple(self._layers.use(each.lazy) for each in chain if each.lazy is not None)

    def _release_layers(self, number: int) -> None:
        for live in self._used_layers.pop(number, ()):
            live.uses.change(-1)

    def roots_on(self, layers: set[str]) -> list[Path]:
        """Where the roots are mounted that are stacked on any of these live layers."""
        return [
            self._folders.root(number) for number, used in self._used_layers.items() if any(live.name in layers for live in used)
        ]

    def _has_directories(self, snapshot: Snapshot) -> bool:
        """A row is on the disk at once, and a directory with the next commit of the file system's journal."""
        return self._folders.fs(snapshot.id).is_dir() and self._folders.work(snapshot.id).is_dir()

    def _make_directories(self, snapshot: Snapshot, below: Sequence[Snapshot], images: Sequence[Path]) -> None:
        """Raises StoreUnusable."""
        fs = self._folders.fs(snapshot.id)
        try:
            owner, mode = self._root_of(below, images)
            # They are there where an earlier process died before it could say so.
            for path in (self._folders.of(snapshot.id), fs, self._folders.work(snapshot.id)):
                path.mkdir(mode=0o700, exist_ok=True)
            os.chmod(fs, mode)
            os.chown(fs, *owner)
        except OSError as error:
            raise StoreUnusable(f"the directories of snapshot {snapshot.key} cannot be made: {error}") from error

    def _root_of(self, below: Sequence[Snapshot], images: Sequence[Path]) -> tuple[tuple[int, int], int]:
        """Owner and mode of the root directory of what a snapshot stands on: a merged root shows those of the upper one."""
        if not below:
            return (0, 0), 0o755
        if below[0].lazy is None:
            found = os.stat(self._folders.fs(below[0].id))
            return (found.st_uid, found.st_gid), found.st_mode & 0o7777
        root = inherited_from(images, [b""])[b""]
        return (root.uid, root.gid), root.mode

    async def _undo(self, snapshot: Snapshot) -> None:
        self._release_layers(snapshot.id)
        with suppress(LazyfsError):
            await trio.to_thread.run_sync(self.snapshots.remove, snapshot.key)
            await trio.to_thread.run_sync(self.roots.remove, snapshot.id)

    def _commit(self, snapshot: Snapshot, name: str, labels: Mapping[str, str]) -> None:
        inodes = size = 0
        if snapshot.kind == "active":  # else it is refused below
            fs = self._folders.fs(snapshot.id)
            if is_extract(snapshot.key):
                strip(fs)
                # Once this is answered, containerd takes the layer for whole and looks at none of its files again, whatever a power
                # cut has left of them.
                self._store.durability.sync_all()
            inodes, size = usage(fs)
        self.snapshots.commit(snapshot.key, name, labels, inodes, size)
        self.roots.unmount(snapshot.id)


def lazy_name(target: str, parent: str) -> str:
    """Of a lazy snapshot: containerd finds it by its label and parent. Different images may have the same chain ID on parents that
    are not the same snapshot: one was unpacked, the other is lazy."""
    return f"{target}/{digest_of(parent.encode())[7:23]}"


def _objects_of(store: Store, lazy: LazyLayer) -> set[str]:
    layer = load_again(store, layer_of(lazy))
    if layer is None:
        raise StoreUnusable(f"the TOC of layer {lazy.digest} is missing from the store")
    return _names(LayerBlob.of(layer).pieces)


def _names(pieces: Iterable[Piece]) -> set[str]:
    """Of the objects that they are of."""
    return {piece.content.name for piece in pieces}
