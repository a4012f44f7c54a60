"""The snapshotter of one containerd: Prepare, Mounts, Commit and the other calls.

With a Prepare that names its target (`containerd.io/snapshot.ref`), containerd asks for a layer. If it can be lazy, it is committed at once,
and the answer is that it exists already: containerd then neither fetches nor unpacks it. What prevents that is not an error, which would
fail the whole pull, but a reason: the answer is an ordinary directory, and containerd unpacks the layer.

containerd's garbage collector holds a lock while it calls Remove, List and Cleanup: they wait for sqlite only. Unmounts and removals from
the disk follow in the background.
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
from lazyfs.snapshots.labels import IMAGE, REMOTE, REMOTE_VALUE, TARGET, Claim, Ordinary, is_extract, read_labels
from lazyfs.snapshots.snapshot import LazyLayer, Snapshot, shown
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)


class Usage(NamedTuple):
    """The disk usage of a snapshot."""

    inodes: int
    size: int
    """Bytes."""


class Snapshotter:
    """The snapshotter of one containerd. Not thread-safe, except where noted."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        layers: LazyLayers,
        resolver: LayerResolver,
        mounts: LayerMounts,
        tasks: Supervisor,
    ) -> None:
        """`folder` is STORE/containerd/NAME. Blocking. Raises StoreUnusable, also for a damaged row."""
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
            """The snapshots that an earlier process left, until `start`."""
        except BaseException:
            self.snapshots.close()
            raise
        self.roots = Roots(store.directory.path, self._folders, mounts)
        self._unrecorded: dict[str, Snapshot] = {}
        """Lazy snapshots whose objects will be recorded soon, by key."""
        self._used_layers: dict[int, tuple[LiveLayer, ...]] = {}
        """The live layers that a mounted root uses, by the number of its snapshot."""

    def close(self) -> None:
        """Close the database; mounts stay. Blocking."""
        self.snapshots.close()

    async def start(self) -> None:
        """Take over from an earlier process: acquire the layers of mounted roots, resume pulls, remove leftovers."""
        wanted: dict[str, LazyLayer] = {}
        found, self._found = self._found, []
        for snapshot in found:  # first of all, and without a wait: TOCs that are counted are not evicted
            if snapshot.lazy is not None:
                wanted[name_of(snapshot.lazy)] = snapshot.lazy
                self._layers.add(snapshot.lazy)
        mounted = await trio.to_thread.run_sync(self.roots.mounted)
        for snapshot in found:
            if snapshot.lazy is None and snapshot.id in mounted:
                await self._use_layers_soon(snapshot)
        self._tasks.keep_running("pulls of an earlier process", self._layers.resume, tuple(wanted.values()))
        for snapshot in await trio.to_thread.run_sync(self.snapshots.without_objects):
            self._tasks.start_soon("note of a layer's objects", self._record_objects_later, snapshot, subject=shown(snapshot.key))
        self._tasks.keep_running("removal of what an earlier process left", self.cleanup)

    async def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], kind: Literal["active", "view"] = "active"
    ) -> tuple[MountSpec, ...]:
        """Create a snapshot; returns its mounts. Raises SnapshotExists for a lazy layer; SnapshotError, LocalError."""
        self._layers.quiet_period.note_request()
        asked = read_labels(labels) if kind == "active" else Ordinary("")
        reason = asked.reason if isinstance(asked, Ordinary) else await self._commit_lazy(asked, parent, labels)
        if reason:
            _log.warning("%s, of image %s, is not lazy: the layer %s", key, labels.get(IMAGE, "unknown"), reason)
        snapshot = await trio.to_thread.run_sync(partial(self.snapshots.create, key, parent, kind, labels, reason=reason))
        try:
            chain = await trio.to_thread.run_sync(self.snapshots.ancestry, key)
            images = await self._images(chain[1:])
            await trio.to_thread.run_sync(self._make_directories, snapshot, chain[1:], images)
            return await self._mounts_of(snapshot, chain, images)
        except BaseException:
            # A snapshot of an earlier process may be in use: containerd may have got that answer.
            if snapshot.session == self._session:
                with trio.CancelScope(shield=True):
                    await self._undo(snapshot)
            raise

    async def mounts(self, key: str) -> tuple[MountSpec, ...]:
        """The mounts of an active snapshot or a view. Raises SnapshotNotFound, SnapshotBusy; LocalError."""
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
        """Commit an active snapshot. Raises SnapshotError, LocalError."""
        try:
            snapshot = await trio.to_thread.run_sync(self.snapshots.stat, key)
        except SnapshotNotFound:
            # This succeeds if an earlier process has committed it.
            await trio.to_thread.run_sync(self.snapshots.commit, key, name, labels, 0, 0)
            return
        await trio.to_thread.run_sync(self._commit, snapshot, name, labels)
        self._release_layers(snapshot.id)

    async def remove(self, key: str) -> None:
        """Remove a snapshot; its files are removed later. Raises SnapshotError, LocalError."""
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
        """See Snapshots. Blocking, for any thread."""
        return self.snapshots.pages(filters)

    async def usage(self, key: str) -> Usage:
        """The disk usage of a snapshot. Raises SnapshotNotFound."""
        snapshot = await trio.to_thread.run_sync(self.snapshots.stat, key)
        if snapshot.lazy is not None:
            for each in tuple(self._unrecorded.values()):  # an object is counted at the oldest snapshot that names it
                await self._record_objects(each)
            names = await trio.to_thread.run_sync(self.snapshots.first_objects, key)
            return Usage(*await trio.to_thread.run_sync(self._store.usage, names))
        if snapshot.kind != "active":
            return Usage(snapshot.inodes, snapshot.size)
        return Usage(*await trio.to_thread.run_sync(usage, self._folders.fs(snapshot.id)))

    async def cleanup(self) -> None:
        """Remove in the background what belongs to no snapshot."""
        # Directories first: one that is created meanwhile has a row already.
        there = await trio.to_thread.run_sync(self.roots.directories)
        known = await trio.to_thread.run_sync(self.snapshots.ids)
        for number in set(there) - known:
            self._remove_later(number)
        # A root may have been in use when its snapshot was removed.
        self._tasks.start_soon("unmount of layers", trio.to_thread.run_sync, self.roots.unmount_unused_layers)

    def _remove_later(self, number: int) -> None:
        """Remove the files of a removed snapshot. If that fails, the next cleanup removes them."""
        self._tasks.start_soon(
            "removal of a snapshot", trio.to_thread.run_sync, self.roots.remove, number, subject=f"number {number}"
        )

    async def _commit_lazy(self, claim: Claim, parent: str, labels: Mapping[str, str]) -> str:
        """Commit a lazy layer, or return why it cannot be lazy. Raises SnapshotExists if it is lazy; SnapshotError for an invalid parent."""
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
                    _log.warning("cannot serve layer %s of %s lazily: %s", claim.digest, claim.reference, error)
                return f"{claim.digest} cannot be lazy: {error}"
            except Exception as surprise:  # noqa: BLE001  a defect must not fail the pull: the layer is unpacked instead
                cause = self._tasks.failures.record("lazy layer", surprise, claim.digest)
                return f"{claim.digest} cannot be lazy: lazyfsd failed: {cause!r}"
            reason = ""
        if reason:
            return reason
        with trio.CancelScope(shield=True):
            marked = {**labels, TARGET: claim.target, REMOTE: REMOTE_VALUE}
            with suppress(SnapshotExists):  # another Prepare of the same layer was first
                snapshot = await trio.to_thread.run_sync(self.snapshots.commit_lazy, name, parent, marked, resolved.lazy)
                self._layers.add(resolved.lazy)
                live = self._layers.pull(resolved.lazy, resolved.layer_index)
                key = shown(snapshot.key)
                self._tasks.start_soon("note of a layer's objects", self._record_objects_later, snapshot, live, subject=key)
        raise SnapshotExists(f"the layer {claim.target} is lazy, and ready")

    async def _record_objects_later(self, snapshot: Snapshot, live: LiveLayer | None = None) -> None:
        """Record a layer's objects after the pull. A call of `usage` before that records them itself."""
        self._unrecorded[snapshot.key] = snapshot
        await self._layers.quiet_period.wait()
        if snapshot.key in self._unrecorded:
            await self._record_objects(snapshot, live)

    async def _record_objects(self, snapshot: Snapshot, live: LiveLayer | None = None) -> None:
        """Record a layer's objects, for `usage`; from its index if it is being indexed, because reading the TOC again is expensive."""
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
            _log.warning("cannot record the disk usage of layer %s of %s: %s", lazy.digest, lazy.reference, error)
        self._unrecorded.pop(snapshot.key, None)

    async def _images(self, below: Sequence[Snapshot]) -> tuple[Path, ...]:
        """The metadata of the committed snapshots `below` (uppermost first), the lowest first: EROFS images and unpacked directories.

        Empty if none of them is lazy. Raises LazyfsError if missing documents cannot be fetched again.
        """
        if all(each.lazy is None for each in below):
            return ()
        return await self._resolver.build(self._stack(below))

    async def _mounts_of(self, snapshot: Snapshot, chain: Sequence[Snapshot], images: Sequence[Path]) -> tuple[MountSpec, ...]:
        """The mounts of `snapshot`. `chain`: itself and its ancestors; `images`: the metadata of the ancestors."""
        if not images:
            lower = [self._folders.fs(each.id) for each in reversed(chain[1:])]
            return overlay_mounts(snapshot, self._folders, lower, index_off=INDEX_OFF)
        if snapshot.kind == "active" and is_extract(snapshot.key):
            # The unpacker writes to the upper directory, and reads owners of parents in the lower ones: metadata is enough.
            lower = list(await trio.to_thread.run_sync(self._lower, snapshot.id, images))
            return overlay_mounts(snapshot, self._folders, lower, index_off=INDEX_OFF)
        self._use_layers(snapshot, chain)
        root = await trio.to_thread.run_sync(self.roots.ensure, snapshot, images)
        return bind(root, read_only=snapshot.kind == "view")

    def _stack(self, chain: Sequence[Snapshot]) -> list[LazyLayer | Path]:
        """The layers of a chain of committed snapshots, the lowest first."""
        return [each.lazy or self._folders.fs(each.id) for each in reversed(chain)]

    def _lower(self, number: int, images: Sequence[Path]) -> tuple[Path, ...]:
        try:
            return self.roots.lower(number, images)
        except OSError as error:
            raise StoreUnusable(f"a layer's metadata image cannot be mounted: {error}") from error

    def _use_layers(self, snapshot: Snapshot, chain: Sequence[Snapshot]) -> None:
        """Keep the layers of a root live as long as it is mounted."""
        if snapshot.id in self._used_layers:
            return
        used: list[LiveLayer] = []
        try:
            used.extend(self._layers.use(each.lazy) for each in chain if each.lazy is not None)  # keeps those before a failure
        except BaseException:
            for live in used:
                live.uses.change(-1)
            raise
        self._used_layers[snapshot.id] = tuple(used)

    async def _use_layers_soon(self, snapshot: Snapshot) -> None:
        """Returns after the first attempt: the gate must expect a root's layers before it says which objects it does not have."""
        tried = trio.Event()
        self._tasks.keep_running(
            "layers of a root",
            self._use_layers_again,
            snapshot,
            subject=shown(snapshot.key),
            failed=lambda _: tried.set(),
            wakes=(tried,),
        )
        await tried.wait()

    async def _use_layers_again(self, snapshot: Snapshot) -> None:
        """The layers of a root that an earlier process left mounted, unless the snapshot was removed meanwhile."""
        try:
            chain = await trio.to_thread.run_sync(self.snapshots.ancestry, snapshot.key)
            self._use_layers(snapshot, chain)
        except SnapshotNotFound:
            pass
        except LazyfsError as error:  # for example, a dialect that only a later version knows
            _log.error("files that snapshot %s is missing cannot be fetched: %s", shown(snapshot.key), error)

    def _release_layers(self, number: int) -> None:
        for live in self._used_layers.pop(number, ()):
            live.uses.change(-1)

    def roots_on(self, layers: set[str]) -> list[Path]:
        """The mount points of roots that are stacked on any of these live layers."""
        return [
            self._folders.root(number) for number, used in self._used_layers.items() if any(live.name in layers for live in used)
        ]

    def _has_directories(self, snapshot: Snapshot) -> bool:
        """False after a power cut: a row is synced at once, a directory with the next commit of the journal."""
        return self._folders.fs(snapshot.id).is_dir() and self._folders.work(snapshot.id).is_dir()

    def _make_directories(self, snapshot: Snapshot, below: Sequence[Snapshot], images: Sequence[Path]) -> None:
        """Raises StoreUnusable."""
        fs = self._folders.fs(snapshot.id)
        try:
            owner, mode = self._root_of(below, images)
            # They exist if an earlier process died before it answered.
            for path in (self._folders.of(snapshot.id), fs, self._folders.work(snapshot.id)):
                path.mkdir(mode=0o700, exist_ok=True)
            os.chmod(fs, mode)
            os.chown(fs, *owner)
        except OSError as error:
            raise StoreUnusable(f"the directories of snapshot {snapshot.key} cannot be made: {error}") from error

    def _root_of(self, below: Sequence[Snapshot], images: Sequence[Path]) -> tuple[tuple[int, int], int]:
        """Owner and mode of the parent's root directory: a merged root has those of the upper directory."""
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
                # After this, containerd takes the layer for complete, even if a power cut has lost some of its files.
                self._store.durability.sync_all()
            inodes, size = usage(fs)
        self.snapshots.commit(snapshot.key, name, labels, inodes, size)
        self.roots.unmount(snapshot.id)


def lazy_name(target: str, parent: str) -> str:
    """The name of a lazy snapshot, which containerd finds by its label and parent. The same chain ID may occur on different parents: an
    unpacked one in one image, a lazy one in another."""
    return f"{target}/{digest_of(parent.encode())[7:23]}"


def _objects_of(store: Store, lazy: LazyLayer) -> set[str]:
    layer = load_again(store, layer_of(lazy))
    if layer is None:
        raise StoreUnusable(f"the TOC of layer {lazy.digest} is missing from the store")
    return _names(LayerBlob.of(layer).pieces)


def _names(pieces: Iterable[Piece]) -> set[str]:
    """The names of the pieces' objects."""
    return {piece.content.name for piece in pieces}
