"""The native mounts of one daemon: gone when the kernel says so.

A mount is an overlay that the daemon makes in its own mount namespace. It is not the daemon's to serve: what is here keeps
working without it. So all that is kept of a mount is its row (state.py), its image while it lives (live/image.py), and a
watch that tells when the last user of it has gone, whoever unmounted it and however.

The order of a mount: the row, then the overlay, then the mark that it is there. The order of its end: the overlay, then the
row. A crash in between leaves a row without a mount, which the next start removes, or a mount with a row that says
`mounting`, which is a mount. mounting.py makes mounts by order, revival.py finds those of an earlier process.
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
    """A mount, while the kernel has it."""

    row: Row
    image: str
    is_untracked: bool
    """Detached before this process began: it may be in use, and nothing tells when it ends but the end of the gate."""
    ended: trio.Event
    live: LiveImage | None = None
    """Its image, which counts it; None until that has come to life again."""


class Mounts:
    """All native mounts. Not for threads, except where it says so."""

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
        """`lifetime` counts those whose end will be heard of."""
        self._state = state
        self._catalog = catalog
        self._images = images
        self._recordings = recordings
        self._unmount_events = unmount_events
        self._warm_up = warm_up
        self._lifetime = lifetime
        self._overlays = overlays
        self._watches: dict[int, int] = {}
        """Number of a watch: number of a mount."""
        # One mount(2) at a time: they share the mount points of layers.
        self._mounting = trio.Lock()
        self.live: dict[int, LiveMount] = {}

    @property
    def is_used(self) -> bool:
        """Whether a mount lives whose end will be heard of."""
        return any(not mount.is_untracked for mount in self.live.values())

    async def make(self, mount: MountRecord, live: LiveImage) -> Row:
        """MountRecord a live image, which the mount counts as its own from then on. Raises LazyfsError; nothing is left then.

        Cancelled while the overlay is made, it is made all the same.
        """
        images = await trio.to_thread.run_sync(self._overlays.metadata, live.layers)
        # From here to the mark there is no way back half-done: cancelled, it is finished, and then taken away by who ordered it.
        with trio.CancelScope(shield=True):
            async with self._mounting:
                row = await trio.to_thread.run_sync(self._state.add, mount)
                try:
                    new = await trio.to_thread.run_sync(self._overlays.make, row, images)
                except BaseException:
                    await self.forget([row.number])
                    raise
                # What is thrown away runs one command, which is waited for: nobody walks there at leisure.
                if new and not mount.volatile:
                    await self._begin_warm_up(images)
            if mount.record:
                self._recordings.begin(row.number, Path(mount.record), live.image, live.layers)
            self._begin(LiveMount(row, live.image.name, False, trio.Event(), live))
            await self.mark(row.number, "mounted")
            await self.watch_for_unmount(row)
        return row

    async def _begin_warm_up(self, images: tuple[Path, ...]) -> None:
        try:
            self._warm_up.begin(await trio.to_thread.run_sync(self._overlays.open_metadata, images))
        except OSError as error:
            _log.warning("cannot warm up the inodes of a mount: %s", error)

    async def remount(self, row: Row, live: LiveImage) -> str:
        """Make a mount whose gate is dead once more, at its place. The answer is empty, or says why it stays as it was.

        Raises LazyfsError: it cannot be made, or is gone; MountFailed then, and nothing is left.
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
        """A mount of an earlier process, which is there or may be in use; its image comes to life later."""
        self._catalog.expect(row.mount.image)
        self._begin(LiveMount(row, row.mount.image, not attached, trio.Event()))

    def _begin(self, mount: LiveMount) -> None:
        self.live[mount.row.number] = mount
        if not mount.is_untracked:
            self._lifetime.uses.change(+1)

    def set_image(self, number: int, live: LiveImage) -> None:
        """The image of a found mount lives, and is counted as used by it; by nobody, where the mount has ended meanwhile."""
        mount = self.live.get(number)
        if mount is None:
            live.leave()
        else:
            self.live[number] = mount._replace(live=live)

    async def unmount(self, directory: str, *, lazy: bool) -> None:
        """Unmount what is at `directory`. Raises MountFailed."""
        await trio.to_thread.run_sync(partial(self._overlays.unmount, Path(directory), lazy=lazy))

    async def handle_unmounts(self, tasks: Supervisor) -> None:
        """Until cancelled: hear of mounts that have ended, and clear up behind them. One that fails is not a reason to leave out the next,
        which is reported only once."""
        while True:
            await trio.lowlevel.wait_readable(self._unmount_events)
            for watch in self._unmount_events.ended():
                number = self._watches.pop(watch, None)
                if number is not None:
                    await tasks.attempt("end of a mount", self.end, number, subject=f"number {number}")

    async def watch_for_unmount(self, row: Row) -> None:
        """Hear of the end of a mount that is there, or was a moment ago."""
        try:
            self._watches[await trio.to_thread.run_sync(self._unmount_events.add, row.mount.directory)] = row.number
        except OSError as error:
            _log.warning("cannot watch %s for unmount: %s", row.mount.directory, error)
        # Where it has ended before it was listened to, what is watched is something else.
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
        """A mount is gone: so is what there was for it. Cancelled, it is finished."""
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
                    self._lifetime.uses.change(-1)  # last: all of this is to be over before the daemon ends

    async def _clean_up(self, mount: LiveMount) -> None:
        number = mount.row.number
        await self._recordings.end(number)
        await self.forget([number])
        if mount.live is not None:
            mount.live.leave()
        elif mount.image not in self._images.live and all(mount.image != other.image for other in self.live.values()):
            self._catalog.remove(mount.image)  # it was expected
        await trio.to_thread.run_sync(self._overlays.clean_up, mount.row)
        await self.unmount_unused_layers()

    async def unmount_unused_layers(self) -> None:
        """Unmount the EROFS images that no overlay is stacked on any more."""
        async with self._mounting:
            await trio.to_thread.run_sync(self._overlays.unmount_unused_layers)

    async def mark(self, number: int, phase: Phase, trouble: str = "") -> None:
        """A mount has come so far, or does not work, for that reason."""
        with _log_state_errors([number]):
            await trio.to_thread.run_sync(self._state.mark, number, phase, trouble)
        mount = self.live.get(number)
        if mount is not None:
            row = msgspec.structs.replace(mount.row, phase=phase, trouble=trouble)
            self.live[number] = mount._replace(row=row)

    async def trouble(self, number: int, trouble: str) -> None:
        """Why a mount does not work, or nothing where it does."""
        mount = self.live.get(number)
        if mount is not None:
            await self.mark(number, mount.row.phase, trouble)

    async def forget(self, numbers: list[int]) -> None:
        """Rows without a mount."""
        with _log_state_errors(numbers):
            await trio.to_thread.run_sync(self._state.remove, numbers)


@contextmanager
def _log_state_errors(numbers: Iterable[int]) -> Iterator[None]:
    """A row that cannot be changed, because the disk is full: a leftover, or one that says less than is true. The next start sees
    what is mounted."""
    try:
        yield
    except LocalError as error:
        _log.warning("cannot save the state of mounts %s: %s", numbers, error)
