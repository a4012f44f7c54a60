"""Converts the layers of one image.

fetch    three at a time: downloaded, verified, unpacked, read as a tar
index    one after the other from the lowest up, because each needs the tree of those below
write    one at a time, with all cores; begins as soon as a layer is indexed (with a list of prioritised
         paths: when all layers are, because the topmost one that shows a path gets it)
send     in parallel, once the whole input has been found good
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import trio

from converter.kept import chunks_if_as_requested
from converter.layer import NewLayer, Style, write_layer
from converter.prioritize import Prioritized, find
from converter.progress import Progress, Step
from converter.uploads import Uploads
from lazyfs.errors import InvalidTar
from lazyfs.format.bounds import Bounds, ImageBounds
from lazyfs.format.budget import PARSING, parsing_budget
from lazyfs.format.dialects import claim_of, dialect_of
from lazyfs.format.digest import Digest
from lazyfs.format.estargz import ESTARGZ
from lazyfs.format.manifest import Descriptor
from lazyfs.format.tar import TarMember, read_tar
from lazyfs.format.whiteout import LeftOut
from lazyfs.layertar.download import download
from lazyfs.layertar.in_order import run_in_order
from lazyfs.layertar.layer_index import LayerIndex, index_layer
from lazyfs.layertar.own import own_files, own_note
from lazyfs.layertar.plan import Planned, plan_layer
from lazyfs.layertar.spool import Spool
from lazyfs.layertar.tree import LowerTree
from lazyfs.source.protocol import ImageSource

_FETCHES: Final = 3


class Request(NamedTuple):
    """The options of a conversion."""

    style: Style
    prioritized: tuple[bytes, ...]
    workers: int
    keep: bool
    """Whether a layer that already is what was requested may stay."""


class OldLayer(NamedTuple):
    """A layer of the source, from its manifest and config."""

    descriptor: Descriptor
    diff_id: Digest


class Finished(NamedTuple):
    """A layer before and after, and the seconds that writing it took."""

    old: OldLayer
    new: NewLayer
    seconds: float
    left_out: tuple[str, ...] = ()
    """What the new layer lacks of the source's, in words."""


class _Read(NamedTuple):
    """A tar that has been read."""

    members: Sequence[TarMember]
    left_out: LeftOut
    own: tuple[bytes, ...]
    """The image's own files with names that belong to the format (layertar/own.py)."""

    @classmethod
    def of(cls, spool: Spool, descriptor: Descriptor, what: str, together: ImageBounds) -> _Read:
        """Read the tar. Blocking, in a trio thread, which stops when its caller is cancelled. `together` is the account of everything
        that is read. Raises InvalidTar."""
        left_out = LeftOut()
        bounds = _account(descriptor, what, together)
        members = tuple(read_tar(spool.read_at, spool.size, descriptor.size, what, left_out, bounds=bounds))
        bounds.settle()
        return cls(members, left_out, own_files(members, spool.read_at))


def _account(descriptor: Descriptor, what: str, together: ImageBounds | None = None) -> Bounds:
    """The account of the layer, for use in a trio thread."""
    return Bounds(descriptor.size, what, InvalidTar, trio.from_thread.check_cancelled, image=together)


class Line:
    """State shared by all images of one conversion. A blob in several images is converted once."""

    def __init__(
        self,
        source: ImageSource,
        uploads: Uploads,
        request: Request,
        threads: ThreadPoolExecutor,
        progress: Progress,
        remember: bool,
    ) -> None:
        self.source = source
        self.uploads = uploads
        self.request = request
        self.threads = threads
        self.progress = progress
        self.remember = remember
        """Whether more images follow, which may have the same blobs."""
        self.read: dict[Digest, _Read] = {}
        self.bounds = ImageBounds()
        """The account of all layers that are in memory together: those of an image, or with `remember` of all images."""
        self.finished: dict[Digest, list[tuple[Sequence[Planned], NewLayer]]] = {}


async def convert_layers(line: Line, layers: Sequence[OldLayer], last: bool) -> tuple[list[Finished], tuple[bytes, ...]]:
    """Convert the layers of one image and begin to send them; also the prioritised paths that no layer shows.

    `last`: no image follows, so the input is good when its layers are indexed. Cancelled: nothing is left behind. Raises LazyfsError.
    """
    jobs = [_Job(line, number, layer) for number, layer in enumerate(layers)]
    try:
        return await _run(line, jobs, last)
    finally:
        for job in jobs:
            job.close()


async def _run(line: Line, jobs: Sequence[_Job], last: bool) -> tuple[list[Finished], tuple[bytes, ...]]:
    tree = LowerTree()
    found = Prioritized({}, ())
    finished: dict[int, Finished] = {}
    ready, write = trio.open_memory_channel[_Job](len(jobs))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_order, [job.fetch for job in jobs], _FETCHES)

        async def write_all() -> None:
            async for job in write:
                finished[job.number] = await job.write(found.layers.get(job.number, ()))

        nursery.start_soon(write_all)
        with ready:
            for job in jobs:
                await job.index(tree)
                if not line.request.prioritized:
                    ready.send_nowait(job)
            if last:
                line.uploads.start()
            if line.request.prioritized:
                found = find(line.request.prioritized, tree)
                for job in jobs:
                    ready.send_nowait(job)
    return [finished[job.number] for job in jobs], found.missing


class _Job:
    """One layer, from fetching to sending."""

    def __init__(self, line: Line, number: int, layer: OldLayer) -> None:
        self.number = number
        self._line = line
        self._layer = layer
        self._what = f"layer {layer.descriptor.digest}"
        self._title = f"{number + 1:3} {layer.descriptor.digest[7:19]}"
        self._fetched = trio.Event()
        self._spool: Spool | None = None
        self._read: _Read | None = None
        self._index: LayerIndex | None = None
        self._led_below = LeftOut()

    def close(self) -> None:
        """Free the disk space."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    async def fetch(self) -> None:
        """Download the layer's tar to disk and read it."""
        descriptor = self._layer.descriptor
        self._read = self._line.read.get(descriptor.digest)
        if self._read is None:
            spool = await self._download()
            async with parsing_budget().hold(PARSING):  # one at a time: an error in one ends all
                self._read = await trio.to_thread.run_sync(_Read.of, spool, descriptor, self._what, self._line.bounds)
            if self._line.remember:
                self._line.read[descriptor.digest] = self._read
        self._fetched.set()

    async def index(self, tree: LowerTree) -> None:
        """Wait for the layer, and add it to `tree`."""
        await self._fetched.wait()
        assert self._read is not None
        bounds = _account(self._layer.descriptor, self._what)
        place = partial(index_layer, tree, self._read.members, self.number, self._what, self._led_below, bounds)
        self._index = await trio.to_thread.run_sync(place)
        if self._spool is not None and self._spool.blob is None:
            self._read = self._read._replace(members=())  # only a layer that may stay is compared with its tar later

    async def write(self, prioritized: Sequence[bytes]) -> Finished:
        """Write the layer, unless it has been written before, and begin to send it."""
        began = trio.current_time()
        assert self._index is not None
        plan = await trio.to_thread.run_sync(plan_layer, self._index, prioritized)
        digest = self._layer.descriptor.digest
        done = next((layer for known, layer in self._line.finished.get(digest, ()) if known == plan), None)
        if done is None:
            done = await self._keep_or_write(plan)
            if self._line.remember:
                self._line.finished.setdefault(digest, []).append((plan, done))
        self.close()
        self._index = None
        return Finished(self._layer, done, trio.current_time() - began, self._left_out())

    def _left_out(self) -> tuple[str, ...]:
        assert self._read is not None
        notes = (self._read.left_out.note, self._led_below.note, own_note(self._read.own))
        return tuple(f"{self._what}: {note}" for note in notes if note)

    async def _download(self) -> Spool:
        descriptor, diff_id = self._layer
        line = self._line
        keep = line.request.keep and dialect_of(descriptor.annotations) is ESTARGZ
        step = line.progress.phase(self._title, "fetch", descriptor.size)
        self._spool = await download(line.source, descriptor, diff_id, step, keep_blob=keep)
        return self._spool

    async def _keep_or_write(self, plan: Sequence[Planned]) -> NewLayer:
        line = self._line
        descriptor = self._layer.descriptor
        spool = self._spool or await self._download()
        style = line.request.style
        read = self._read
        assert read is not None
        count = None
        if not read.left_out:  # else a new conversion would write something else
            count = await trio.to_thread.run_sync(chunks_if_as_requested, plan, read.members, spool, descriptor, style.cut)
        if count is not None and spool.blob is not None:
            toc_digest = claim_of(descriptor.annotations, self._what).digest
            new = NewLayer(
                descriptor.digest, descriptor.size, self._layer.diff_id, toc_digest, spool.size, len(plan), count, True
            )
            file = spool.take_blob()
        else:
            total = sum(planned.entry.size for planned in plan)
            step = _cancellable(line.progress.phase(self._title, "convert", total))
            file, new = await trio.to_thread.run_sync(
                write_layer, plan, spool.read_at, style, line.threads, line.request.workers, step
            )
        line.uploads.send(new.digest, new.size, file, new.kept, line.progress.phase(self._title, "send", new.size))
        return new


def _cancellable(step: Step) -> Step:
    """`step` for a thread that must stop when its caller is cancelled."""

    def checked(count: int) -> None:
        trio.from_thread.check_cancelled()
        step(count)

    return checked
