"""The native mounts of one lazyfsd.

A mount is an overlay that lazyfsd makes in its own mount namespace but does not serve: files that have arrived work without it. So lazyfsd
keeps only a mount's row (state.py), its image while it is live (live/image.py), and an inotify watch for its unmount, by whatever process
and means.

To mount: first the row, then the overlay, then the mark that it is mounted. To unmount: first the overlay, then the row. A crash in between
leaves a row without a mount, which the next start removes, or a mount whose row says `mounting`, which counts as a mount. mounting.py
executes orders, recovery.py finds the mounts of an earlier process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from lazyfs.daemon.inode_warm_up import InodeWarmUp
from lazyfs.daemon.lifetime import Lifetime
from lazyfs.daemon.overlays import Overlays
from lazyfs.daemon.recording import Recordings
from lazyfs.daemon.state import MountRecord, Phase, Row, State
from lazyfs.errors import LazyfsError, LocalError, MountFailed
from lazyfs.gate.catalog import Catalog
from lazyfs.kernel.unmount_events import UnmountEvents
from lazyfs.live.image import Images, LiveImage
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)


class LiveMount(NamedTuple):
    """A mount that the kernel still has."""

    row: Row
    image: str
    is_untracked: bool
    """Detached before this process started: it may be in use, and only the end of the gate shows that it is not."""
    ended: trio.Event
    live: LiveImage | None = None
    """Its image, which it uses; None until the image is live again."""


class Mounts:
    """All native mounts. Not thread-safe."""

    def __init__(
        self,
        overlays: Overlays,
        state: State,
        catalog: Catalog,
        images: Images,
        recordings: Recordings,
        unmount_events: UnmountEvents,
        warm_up: InodeWarmUp,
        lifetime: Lifetime,
    ) -> None:
        """`lifetime` counts the mounts whose unmount will be seen."""
        self._state = state
        self._catalog = catalog
        self._images = images
        self._recordings = recordings
        self._unmount_events = unmount_events
        self._warm_up = warm_up
        self._lifetime = lifetime
        self._overlays = overlays
        self._watches: dict[int, int] = {}
        """Maps the number of a watch to that of a mount."""
        # One at a time: overlays share the mounts of layers.
        self._mounting = trio.Lock()
        self.live: dict[int, LiveMount] = {}

    @property
    def is_used(self) -> bool:
        """Whether there is a mount whose unmount will be seen."""
        return any(not mount.is_untracked for mount in self.live.values())

    async def make(self, mount: MountRecord, live: LiveImage) -> Row:
        """Mount a live image; the mount takes over the caller's use of it. Raises LazyfsError; nothing is left then.

        Cancelled: once the row is written, the mount is completed, and the caller must unmount it.
        """
        images = await trio.to_thread.run_sync(self._overlays.metadata, live.layers)
        # Not to be interrupted between row and mark: a cancelled caller unmounts it afterwards.
        with trio.CancelScope(shield=True):
            async with self._mounting:
                row = await trio.to_thread.run_sync(self._state.add, mount)
                try:
                    new = await trio.to_thread.run_sync(self._overlays.make, row, images)
                except BaseException:
                    await self.forget([row.number])
                    raise
                # A volatile mount runs one command that somebody waits for: the warm-up would slow it down.
                if new and not mount.volatile:
                    await self._begin_warm_up(images, mount.directory)
            if mount.record:
                self._recordings.begin(row.number, Path(mount.record), live.image, live.layers)
            self._begin(LiveMount(row, live.image.name, False, trio.Event(), live))
            await self.mark(row.number, "mounted")
            await self.watch_for_unmount(row)
        return row

    async def _begin_warm_up(self, images: tuple[Path, ...], directory: str) -> None:
        try:
            self._warm_up.begin(await trio.to_thread.run_sync(self._overlays.open_metadata, images), directory)
        except OSError as error:
            _log.warning("cannot warm up the inodes of the mount at %s: %s", directory, error)

    async def remount(self, row: Row, live: LiveImage) -> str:
        """Replace a mount whose gate is dead by a new one. Returns why that is not possible; empty if it was done.

        Raises LazyfsError if the new mount cannot be made; MountFailed if the old one is gone: then nothing is mounted.
        """
        images = await trio.to_thread.run_sync(self._overlays.metadata, live.layers)
        async with self._mounting:
            try:
                await self.unmount(row.mount.directory, lazy=False)
            except MountFailed as error:
                if row.mount.upper:
                    return error.message  # two overlays must not write to one upper directory
                await self.unmount(row.mount.directory, lazy=True)
            await trio.to_thread.run_sync(self._overlays.make, row, images)
        return ""

    def adopt(self, row: Row, *, attached: bool) -> None:
        """Take over a mount of an earlier process, which is `attached` or may still be in use. Its image becomes live later."""
        self._catalog.expect(row.mount.image)
        self._begin(LiveMount(row, row.mount.image, not attached, trio.Event()))

    def _begin(self, mount: LiveMount) -> None:
        self.live[mount.row.number] = mount
        if not mount.is_untracked:
            self._lifetime.uses.change(+1)

    def set_image(self, number: int, live: LiveImage) -> None:
        """Give an adopted mount its live image; the image is released if the mount is gone."""
        mount = self.live.get(number)
        if mount is None:
            live.leave()
        else:
            self.live[number] = mount._replace(live=live)

    async def unmount(self, directory: str, *, lazy: bool) -> None:
        """Unmount the mount at `directory`. Raises MountFailed."""
        await trio.to_thread.run_sync(partial(self._overlays.unmount, Path(directory), lazy=lazy))

    async def handle_unmounts(self, tasks: Supervisor) -> None:
        """Wait for unmounts and clean up, until cancelled. A failure does not skip the next one: each is reported only once."""
        while True:
            await trio.lowlevel.wait_readable(self._unmount_events)
            for watch in self._unmount_events.ended():
                number = self._watches.pop(watch, None)
                if number is not None:
                    await tasks.attempt("end of a mount", self.end, number, subject=f"number {number}")

    async def watch_for_unmount(self, row: Row) -> None:
        """Watch for the unmount of a mount that exists, or existed a moment ago."""
        try:
            self._watches[await trio.to_thread.run_sync(self._unmount_events.add, row.mount.directory)] = row.number
        except OSError as error:
            _log.warning("cannot watch %s for unmount: %s", row.mount.directory, error)
        # If it was unmounted before the watch was added, the watch is on another file system.
        try:
            is_there = any(
                str(mounted.path) == row.mount.directory for mounted in await trio.to_thread.run_sync(self._overlays.mounted)
            )
        except OSError as error:  # no descriptors left, for example
            _log.warning("cannot find out whether %s is still mounted: %s", row.mount.directory, error)
            is_there = True
        if not is_there:
            await self.end(row.number)

    async def end(self, number: int) -> None:
        """Clean up after a mount that is gone. Cancelled: it is completed first."""
        mount = self.live.pop(number, None)
        if mount is None:
            return
        with trio.CancelScope(shield=True):
            try:
                await self._clean_up(mount)
            except (LazyfsError, OSError) as error:
                _log.warning("cannot clean up after the mount at %s: %s", mount.row.mount.directory, error)
            finally:
                mount.ended.set()
                self._lifetime.last_was_volatile = mount.row.mount.volatile
                if not mount.is_untracked:
                    self._lifetime.uses.change(-1)  # last: lazyfsd must not exit before this is done

    async def _clean_up(self, mount: LiveMount) -> None:
        number = mount.row.number
        await self._recordings.end(number)
        await self.forget([number])
        if mount.live is not None:
            mount.live.leave()
        elif mount.image not in self._images.live and all(mount.image != other.image for other in self.live.values()):
            self._catalog.remove(mount.image)  # it was expected, but never live
        await trio.to_thread.run_sync(self._overlays.clean_up, mount.row)
        await self.unmount_unused_layers()

    async def unmount_unused_layers(self) -> None:
        """Unmount the EROFS images that no overlay is stacked on."""
        async with self._mounting:
            await trio.to_thread.run_sync(self._overlays.unmount_unused_layers)

    async def mark(self, number: int, phase: Phase, trouble: str = "") -> None:
        """Save a mount's phase, and why it does not work."""
        with _log_state_errors([number]):
            await trio.to_thread.run_sync(self._state.mark, number, phase, trouble)
        mount = self.live.get(number)
        if mount is not None:
            row = msgspec.structs.replace(mount.row, phase=phase, trouble=trouble)
            self.live[number] = mount._replace(row=row)

    async def trouble(self, number: int, trouble: str) -> None:
        """Save why a mount does not work; empty if it does."""
        mount = self.live.get(number)
        if mount is not None:
            await self.mark(number, mount.row.phase, trouble)

    async def forget(self, numbers: list[int]) -> None:
        """Remove rows without a mount."""
        with _log_state_errors(numbers):
            await trio.to_thread.run_sync(self._state.remove, numbers)


@contextmanager
def _log_state_errors(numbers: Iterable[int]) -> Iterator[None]:
    """Log errors of a change of these rows, such as a full disk. A wrong row does no harm: the next start sees what is mounted."""
    try:
        yield
    except LocalError as error:
        _log.warning("cannot save the state of mounts %s: %s", numbers, error)
