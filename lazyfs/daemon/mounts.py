"""The native mounts of one daemon: made by order, kept in the state, gone when the kernel says so.

A mount is an overlay that the daemon makes in its own mount namespace. It is not the daemon's to serve: what is here keeps
working without it. So all that is kept of a mount is its row (state.py), its image while it lives (images.py), and a
watch that tells when the last user of it has gone, whoever unmounted it and however.

The order of a mount: the row, then the overlay, then the mark that it is there. The order of its end: the overlay, then the
row. A crash in between leaves a row without a mount, which the next start removes, or a mount with a row that says
`mounting`, which is a mount.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import trio

from lazyfs.daemon.control import Tell
from lazyfs.daemon.images import Images, LiveImage
from lazyfs.daemon.orders import MountOrder, Report, UnmountOrder
from lazyfs.daemon.overlays import Overlays
from lazyfs.daemon.recording import Recordings
from lazyfs.daemon.state import Mount, Phase, Row, State
from lazyfs.errors import InvalidToc, LazyfsError, LocalError, MountFailed, NotNative, Unreachable
from lazyfs.fetch.background import measure_missing
from lazyfs.format.manifest import parse_platform
from lazyfs.gate.catalog import Catalog
from lazyfs.image.image import resolve_image
from lazyfs.kernel.ends import Ends
from lazyfs.mount.table import find_mount, our_mounts
from lazyfs.native.metadata import LayerMetadata, ensure_metadata
from lazyfs.native.probe import Verdict, probe
from lazyfs.native.stack import SOURCE_PREFIX, source_of
from lazyfs.registry.access import AccessOptions, parse_creds
from lazyfs.source.open import open_source
from lazyfs.source.protocol import ImageSource
from lazyfs.source.reference import Reference, parse_reference
from lazyfs.store.store import Store
from lazyfs.whole.image import load_image_layers

_log = logging.getLogger(__name__)

_SLOWEST: Final = 60.0
_REPORT_PAUSE: Final = 0.25
_END_DEADLINE: Final = 5.0
"""Seconds that an unmount waits to hear that the last user has gone."""


class LiveMount(NamedTuple):
    """A mount, while the kernel has it."""

    row: Row
    image: str
    is_lost: bool
    """Detached before this process began: it may be in use, and nothing tells when it ends but the end of the gate."""
    ended: trio.Event
    live: LiveImage | None = None
    """Its image, which counts it; None until that has come to life again."""


class Mounts:
    """All native mounts. Not for threads, except where it says so."""

    def __init__(self, store: Store, state: State, catalog: Catalog, images: Images, recordings: Recordings, ends: Ends) -> None:
        self._store = store
        self._path = store.directory.path
        self._state = state
        self._catalog = catalog
        self._images = images
        self._recordings = recordings
        self._ends = ends
        self._overlays = Overlays(self._path)
        self._busy: set[str] = set()
        self._watches: dict[int, int] = {}
        """Number of a watch: number of a mount."""
        self._verdict: Verdict | None = None
        # One mount(2) at a time: they share the mount points of layers.
        self._mounting = trio.Lock()
        self.live: dict[int, LiveMount] = {}
        self.last_was_volatile = False
        """Of the mount that ended last: what it was for will probably be wanted again."""
        self.changed = trio.Event()
        self.has_gate = True

    @property
    def is_used(self) -> bool:
        """Whether a mount lives whose end will be heard of."""
        return any(not mount.is_lost for mount in self.live.values())

    async def mount(self, order: MountOrder, tell: Tell) -> Report:
        """Mount as ordered. Raises LazyfsError; nothing is left then, but what has arrived in the store, or with `background` a mount
        that is incomplete. Nor is there when it is cancelled, but a mount that somebody uses already.
        """
        for mount in self.live.values():
            if mount.row.mount.ticket == order.ticket:
                return await self._tell_again(mount.row, order, tell)
        async with self._alone(order.directory, order.upper):
            await self._check(order)
            live = await self._bring_to_life(order, order.creds, tell, lazy_only=order.lazy_only)
            try:
                row = await self._attach(order, live)
            except BaseException:
                live.leave()
                raise
            try:
                if order.background == "wait":
                    await _follow(live, self._store, tell)
                return await self._report(row)
            except trio.Cancelled:
                await self._take_back(row)
                raise

    async def _tell_again(self, row: Row, order: MountOrder, tell: Tell) -> Report:
        """The order was carried out by a process that died before it said so; the image may not have come to life again."""
        live = await self._bring_to_life(row.mount, order.creds, tell, lazy_only=False)
        try:
            if order.background == "wait":
                await _follow(live, self._store, tell)
            return await self._report(row)
        finally:
            live.leave()

    async def _take_back(self, row: Row) -> None:
        """Whoever ordered this mount has gone: nobody knows of it."""
        mount = self.live.get(row.number)
        if mount is None:
            return
        with trio.CancelScope(shield=True), trio.move_on_after(_END_DEADLINE):
            try:
                await trio.to_thread.run_sync(partial(self._overlays.take_away, Path(row.mount.directory), lazy=False))
            except MountFailed as error:
                _log.warning("the order of a mount was taken back, and the mount stays: %s", error)
            else:
                await mount.ended.wait()

    async def unmount(self, order: UnmountOrder) -> Report:
        """Unmount as ordered, and wait for the end of it. Raises MountFailed: it is none of ours, or busy."""
        directory = Path(order.directory)
        async with self._alone(order.directory):
            found = [mount for mount in self.live.values() if mount.row.mount.directory == order.directory]
            if not found:
                raise MountFailed(f"{directory} is no mount of this lazyfsd", hint="`lazyfs status` lists those there are")
            mount = found[-1]
            if order.lazy:  # said first: a crash in between must not lose a mount that is nowhere to be seen
                await self._mark(mount.row.number, "detached")
            try:
                await trio.to_thread.run_sync(partial(self._overlays.take_away, directory, lazy=order.lazy))
            except MountFailed:
                if order.lazy:
                    await self._mark(mount.row.number, "mounted")
                raise
            with trio.move_on_after(0 if order.lazy else _END_DEADLINE):
                await mount.ended.wait()
        return {"directory": order.directory}

    async def watch(self) -> None:
        """Until cancelled: hear of mounts that have ended, and clear up behind them."""
        while True:
            await trio.lowlevel.wait_readable(self._ends)
            for watch in self._ends.ended():
                number = self._watches.pop(watch, None)
                if number is not None:
                    await self._end(number)

    async def restore(self, nursery: trio.Nursery, *, same_gate: bool) -> None:
        """After a start: find the mounts that the state tells of. Without `same_gate` theirs is dead, and they are made anew.

        Touches none of them; what takes time goes on in `nursery`.
        """
        rows = await trio.to_thread.run_sync(self._state.rows)
        seen = {str(mounted.path): mounted for mounted in await trio.to_thread.run_sync(our_mounts)}
        latest = {row.mount.directory: row.number for row in rows}
        gone = []
        for row in rows:
            mounted = seen.get(row.mount.directory)
            here = (
                mounted is not None
                and mounted.mode == "native"
                and SOURCE_PREFIX + mounted.image == source_of(row.mount.image)
                and latest[row.mount.directory] == row.number
            )
            if here or (row.phase == "detached" and same_gate):
                self._catalog.expect(row.mount.image)
                self.live[row.number] = LiveMount(row, row.mount.image, not here, trio.Event())
                nursery.start_soon(self._revive, row, here, same_gate)
            else:
                gone.append(row.number)
        if gone:
            _log.info("%d mounts of an earlier lazyfsd have gone", len(gone))
            with _logged(*gone):
                await trio.to_thread.run_sync(self._state.remove, gone)
        self._announce()

    async def _revive(self, row: Row, attached: bool, same_gate: bool) -> None:
        """Bring the image of a mount that was found back to life, from the store where it is; tries until it can, or the mount ends."""
        if attached and same_gate:
            await self._listen(row)
        pause = 1.0
        while row.number in self.live:
            try:
                live = self.live[row.number].live
                if live is None:
                    # Its documents are in the store, unless they were damaged.
                    live = await self._bring_to_life(row.mount, "", _say_nothing, lazy_only=False)
                    if row.number not in self.live:
                        live.leave()
                        return
                    self.live[row.number] = self.live[row.number]._replace(live=live)
                if attached and not same_gate:
                    await self._heal(row, await self._metadata(live))
                elif pause > 1.0:
                    await self._trouble(row.number, "")
            except LazyfsError as error:
                _log.warning("%s cannot bring what is missing: %s", row.mount.directory, error)
                await self._trouble(row.number, str(error))
                await trio.sleep(pause)
                pause = min(2 * pause, _SLOWEST)
            else:
                return

    async def _check(self, order: MountOrder) -> None:
        directory = Path(order.directory)
        if not self.has_gate:
            raise MountFailed(
                f"the lazyfsd of {self._path} is about to end, and waits for those who still use a mount that was detached",
                hint="End them, or use another --store",
            )
        for mount in self.live.values():
            if order.upper and mount.row.mount.upper == order.upper:
                detached = ", which was detached and is still in use" if mount.row.phase == "detached" else ""
                raise MountFailed(
                    f"{order.upper} takes the changes of the mount at {mount.row.mount.directory}{detached}",
                    hint="Two mounts cannot write to one upper directory: wait for the end of that one, or name another",
                )
        mounted = await trio.to_thread.run_sync(find_mount, directory)
        if mounted is not None:
            raise MountFailed(f"{directory} is a lazyfs mount already", hint=f"Take it away first: lazyfs umount {directory}")
        if self._verdict is None:
            self._verdict = await trio.to_thread.run_sync(probe, self._path)
        if not self._verdict.native:
            raise NotNative(f"this machine cannot mount natively: {self._verdict.reason}", hint="--mode portable can")

    async def _bring_to_life(self, mount: MountOrder | Mount, creds: str, tell: Tell, *, lazy_only: bool) -> LiveImage:
        """The live image of a mount, counted as used by it. Raises LazyfsError."""
        reference = parse_reference(mount.reference)
        background = mount.background != "off"
        source = open_source(reference, AccessOptions(parse_creds(creds) if creds else None, mount.plain_http))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_close, source)
            image = await resolve_image(source, reference.selector, parse_platform(mount.platform), self._store)
            known = self._images.live.get(image.name)
            if known is None:
                layers = await load_image_layers(source, self._store, image, lazy_only=lazy_only, progress=tell)
                known = self._images.live.get(image.name)  # another order may have been quicker
                if known is None:
                    stack.pop_all()
                    return self._images.add(image, layers, source, background=background)
            known.use(background=background)
            return known

    async def _attach(self, order: MountOrder, live: LiveImage) -> Row:
        reference = parse_reference(order.reference)
        pinned = Reference(reference.transport, reference.location, reference.tag, live.image.digest)
        mount = Mount(
            directory=order.directory,
            ticket=order.ticket,
            image=live.image.name,
            reference=str(pinned),
            platform=order.platform,
            plain_http=order.plain_http,
            background=order.background,
            upper=order.upper,
            volatile=order.volatile,
            record=order.record,
        )
        images = await self._metadata(live)
        # From here to the mark there is no way back half-done: cancelled, it is finished, and then taken away by its client.
        with trio.CancelScope(shield=True):
            async with self._mounting:
                row = await trio.to_thread.run_sync(self._state.add, mount)
                try:
                    await trio.to_thread.run_sync(self._overlays.make, row, images)
                except BaseException:
                    with _logged(row.number):
                        await trio.to_thread.run_sync(self._state.remove, [row.number])
                    raise
            if mount.record:
                self._recordings.begin(row.number, Path(mount.record), live.image, live.layers)
            await self._mark(row.number, "mounted")
            await self._adopt(row, live)
        return row

    async def _adopt(self, row: Row, live: LiveImage) -> None:
        """A mount that is there: listen for its end."""
        self.live[row.number] = LiveMount(row, live.image.name, False, trio.Event(), live)
        await self._listen(row)
        self._announce()

    async def _listen(self, row: Row) -> None:
        """Hear of the end of a mount that is there, or was a moment ago."""
        try:
            self._watches[await trio.to_thread.run_sync(self._ends.add, row.mount.directory)] = row.number
        except OSError as error:
            _log.warning("nobody will tell of the end of the mount at %s: %s", row.mount.directory, error)
        # Where it has ended before it was listened to, what is watched is something else.
        if not any(str(mounted.path) == row.mount.directory for mounted in await trio.to_thread.run_sync(our_mounts)):
            await self._end(row.number)

    async def _heal(self, row: Row, images: tuple[Path, ...]) -> None:
        """The gate of this mount is dead: make the mount anew, at its place."""
        directory = Path(row.mount.directory)
        take_away = partial(self._overlays.take_away, directory)
        try:
            async with self._mounting:
                try:
                    await trio.to_thread.run_sync(partial(take_away, lazy=False))
                except MountFailed as error:
                    if row.mount.upper:
                        # Two overlays must not write to one upper directory.
                        trouble = f"files that are missing cannot be had until it is mounted again: {error.message}"
                        await self._trouble(row.number, trouble)
                        await self._listen(row)
                        return
                    await trio.to_thread.run_sync(partial(take_away, lazy=True))
                await trio.to_thread.run_sync(self._overlays.make, row, images)
        except MountFailed as error:
            _log.warning("the mount at %s could not be made anew: %s", directory, error)
            await self._end(row.number)
            return
        _log.warning("the mount at %s was made anew: the gate of the old one was lost", directory)
        await self._listen(row)

    async def _end(self, number: int) -> None:
        mount = self.live.pop(number, None)
        if mount is None:
            return
        with trio.CancelScope(shield=True):
            await self._recordings.end(number)
            with _logged(number):
                await trio.to_thread.run_sync(self._state.remove, [number])
            await trio.to_thread.run_sync(self._overlays.clear_up, mount.row)
            if mount.live is not None:
                mount.live.leave()
            elif mount.image not in self._images.live and all(mount.image != other.image for other in self.live.values()):
                self._catalog.remove(mount.image)  # it was expected
            await self.drop_layers()
        self.last_was_volatile = mount.row.mount.volatile
        mount.ended.set()
        self._announce()

    async def drop_layers(self) -> None:
        """Unmount the EROFS images that no overlay is stacked on any more."""
        async with self._mounting:
            await trio.to_thread.run_sync(self._overlays.drop_layers)

    async def _metadata(self, live: LiveImage) -> tuple[Path, ...]:
        """The EROFS images of an image's stack, built where they are not there. Raises LazyfsError."""
        layers = [LayerMetadata(layer.toc_digest, layer.toc_offset) for layer in live.layers]
        try:
            return await trio.to_thread.run_sync(ensure_metadata, self._path, layers)
        except InvalidToc as error:
            # It was read and found good: only EROFS or overlayfs cannot hold what it describes.
            raise NotNative(f"this image cannot be mounted natively: {error.message}", hint="--mode portable can") from error

    async def _trouble(self, number: int, trouble: str) -> None:
        """Why a mount does not work, or nothing where it does."""
        mount = self.live.get(number)
        if mount is not None:
            await self._mark(number, mount.row.phase, trouble)

    async def _mark(self, number: int, phase: Phase, trouble: str = "") -> None:
        with _logged(number):
            await trio.to_thread.run_sync(self._state.mark, number, phase, trouble)
        mount = self.live.get(number)
        if mount is not None:
            row = msgspec.structs.replace(mount.row, phase=phase, trouble=trouble)
            self.live[number] = mount._replace(row=row)

    async def _report(self, row: Row) -> Report:
        live = self._images.live.get(row.mount.image)
        config = None
        if live is not None:
            config = await trio.to_thread.run_sync(self._store.document, live.image.manifest.config.digest)
        text = (config or b"").decode("utf-8", "replace")
        return {"directory": row.mount.directory, "image": row.mount.image, "mode": "native", "config": text, "pid": os.getpid()}

    @asynccontextmanager
    async def _alone(self, *directories: str) -> AsyncIterator[None]:
        """Directories that no other order has to do with meanwhile; an empty name is none."""
        names = set(directories) - {""}
        for name in names & self._busy:
            raise MountFailed(f"another order for {name} is being carried out", hint="Wait for it")
        self._busy |= names
        try:
            yield
        finally:
            self._busy -= names

    def _announce(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


@contextmanager
def _logged(*numbers: int) -> Iterator[None]:
    """A row that cannot be changed, because the disk is full: a leftover, or one that says less than is true. The next start sees
    what is mounted."""
    try:
        yield
    except LocalError as error:
        _log.warning("what is known of the mounts %s cannot be noted: %s", numbers, error)


async def _close(source: ImageSource) -> None:
    with trio.CancelScope(shield=True):
        await source.aclose()


async def _say_nothing(_: Report) -> None:
    """Nobody listens."""


async def _follow(live: LiveImage, store: Store, tell: Tell) -> None:
    """Until all of the image is here. Raises SourceError: what is left cannot be had."""
    await live.indexed.wait()
    total = (await trio.to_thread.run_sync(measure_missing, store, live.blobs)).size
    fetcher = live.fetcher
    assert fetcher is not None
    before = fetcher.statistics().unpacked
    while not live.rest_ended.is_set():
        done = min(total, fetcher.statistics().unpacked - before)
        await tell({"task": "fetching", "done_bytes": done, "total": total, "trouble": live.trouble})
        with trio.move_on_after(_REPORT_PAUSE):
            await live.rest_ended.wait()
    if live.trouble:
        raise Unreachable(f"{live.image.name} is mounted, but incomplete: {live.trouble}")
    await tell({"task": "fetching", "done_bytes": total, "total": total, "trouble": ""})
