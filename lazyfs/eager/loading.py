"""Fetches eager layers into the store.

fetch    two at a time: downloaded in parallel ranges, verified, unpacked to a tar
place    one after the other from the lowest up, because each needs the tree of those below: the tar is read, once the memory for
         that is available (format/budget.py), and the layer is added to the tree
keep     files are hashed and stored, with all cores; those already in the store are not written again
describe the entries, with the chunks of the files, become a document in the store
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import trio

from lazyfs.eager.document import describe, starts_of
from lazyfs.eager.fetch import fetch_tar
from lazyfs.eager.progress import Bars
from lazyfs.errors import InvalidTar, LazyfsError, StoreFull, most_severe, without_traceback
from lazyfs.format.bounds import Bounds, ImageBounds
from lazyfs.format.budget import PARSING, TAR_WEIGHT, parsing_budget
from lazyfs.format.entry import Chunk
from lazyfs.format.tar import read_tar
from lazyfs.format.whiteout import LeftOut
from lazyfs.image.image import Image
from lazyfs.image.layer import Layer, Whole
from lazyfs.layertar.files import batches, keep_file
from lazyfs.layertar.in_order import run_in_order
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.own import own_files, own_note
from lazyfs.layertar.plan import Planned, plan_layer
from lazyfs.layertar.spool import Spool
from lazyfs.layertar.tree import LowerTree
from lazyfs.source.protocol import ImageSource
from lazyfs.store.layer_lock import LayerLocks
from lazyfs.store.store import Store

_AT_ONCE: Final = 2
"""Layers whose tar is on disk."""
_KEEPERS: Final = (os.cpu_count() or 1) + 1


class LoadContext(NamedTuple):
    """What all layers of one load share."""

    source: ImageSource
    store: Store
    image: Image
    keys: Sequence[str]
    """For each layer, the key of its document (`keys_of`)."""
    bounds: ImageBounds
    """The account of the image, for all its layers together."""
    bars: Bars
    locks: LayerLocks
    """The locks of all layers that are fetched. Each is released when its layer is in the store: others wait for it."""


async def fetch_layers(context: LoadContext, known: Mapping[int, Layer], wanted: Mapping[int, Whole]) -> dict[int, Layer]:
    """Fetch the layers `wanted`, by their numbers in the image; `known` are the layers that need not be fetched.

    Raises SourceError, InvalidInput, LocalError: files that were stored stay, nothing else remains. Cancelled: the same.
    """
    jobs = {number: _Job(context, number, whole) for number, whole in sorted(wanted.items())}
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.bars.run)
            async with trio.open_nursery() as running:
                running.start_soon(run_in_order, [job.run for job in jobs.values()], _AT_ONCE)
                tree = LowerTree()
                for number in range(max(jobs) + 1):
                    if number in jobs:
                        await jobs[number].put_on(tree)
                    else:
                        await trio.to_thread.run_sync(tree.put, known[number].entries, number)
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        error = most_severe(group)
        if isinstance(error, LazyfsError):
            raise error from None
        raise
    await context.bars.report()
    return {number: job.layer for number, job in jobs.items()}


class _Job:
    """One layer."""

    layer: Layer
    """Set when `run` has returned."""

    def __init__(self, context: LoadContext, number: int, whole: Whole) -> None:
        self._context = context
        self._number = number
        self._whole = whole
        self._descriptor = context.image.layers[number]
        self._what = f"layer {self._descriptor.digest}"
        self._title = f"layer {number + 1} of {len(context.image.layers)}"
        self._left_out = LeftOut()
        self._own: tuple[bytes, ...] = ()
        self._tree: LowerTree | None = None
        self._may_read = trio.Event()
        self._placed = trio.Event()

    async def put_on(self, tree: LowerTree) -> None:
        """Let `run` add the layer to `tree`, which holds the layers below, and wait for it. Errors are raised by `run`."""
        self._tree = tree
        self._may_read.set()
        await self._placed.wait()
        self._tree = None

    async def run(self) -> None:
        """All steps for the layer. `put_on` must be called in the meantime."""
        context = self._context
        step = context.bars.begin(f"{self._title}: fetching", self._descriptor.size)
        digest = self._descriptor.digest
        tar = fetch_tar(context.source, self._descriptor, self._whole, context.store, step, keep=context.locks.holds(digest))
        async with tar as spool:
            await self._may_read.wait()  # the tar is on disk: from here on its entries take memory
            async with parsing_budget().hold(PARSING) as held:
                plan, described = await trio.to_thread.run_sync(self._read_and_place, spool)
                held.shrink(TAR_WEIGHT * described)
                self._placed.set()
                chunks = await self._keep(spool, plan)
                self.layer = await trio.to_thread.run_sync(
                    describe, context.store, context.keys[self._number], self._descriptor, self._whole, plan, chunks
                )
        self.layer = self.layer._replace(note="; ".join(filter(None, (self._left_out.note, own_note(self._own)))))
        context.locks.release(digest)

    def _read_and_place(self, spool: Spool) -> tuple[tuple[Planned, ...], int]:
        """The plan, and the bytes of the layer's description."""
        try:
            return self._plan_of(spool)
        except LazyfsError as error:
            raise without_traceback(error) from None  # before the memory is freed

    def _plan_of(self, spool: Spool) -> tuple[tuple[Planned, ...], int]:
        assert self._tree is not None
        size = self._descriptor.size
        bounds = Bounds(size, self._what, InvalidTar, trio.from_thread.check_cancelled, image=self._context.bounds)
        members = tuple(read_tar(spool.read_at, spool.size, size, self._what, self._left_out, bounds=bounds))
        self._own = own_files(members, spool.read_at)
        index = index_layer(self._tree, members, self._number, self._what, self._left_out, bounds)
        plan = plan_layer(index, landmark=False)
        bounds.settle()
        return plan, bounds.described

    async def _keep(self, spool: Spool, plan: Sequence[Planned]) -> list[tuple[Chunk, ...]]:
        starts = starts_of(plan)
        chunks: list[tuple[Chunk, ...]] = [()] * len(plan)
        step = self._context.bars.begin(f"{self._title}: unpacking", starts[-1])
        todo = batches(plan)

        def keep(batch: Sequence[int]) -> None:
            for position in batch:
                chunks[position] = self._keep_file(spool, plan[position], starts[position])

        async def keep_some() -> None:
            for batch in todo:
                await trio.to_thread.run_sync(keep, batch)
                step(sum(plan[position].entry.size for position in batch))

        async with trio.open_nursery() as nursery:
            for _ in range(_KEEPERS):
                nursery.start_soon(keep_some)
        return chunks

    def _keep_file(self, spool: Spool, planned: Planned, start: int) -> tuple[Chunk, ...]:
        context = self._context
        try:
            return keep_file(context.store, planned, start, spool.read_at)
        except StoreFull:
            if not context.locks.holds(self._descriptor.digest):
                raise
            # The partial blob would save another attempt the transfer; without its space no attempt might succeed.
            context.store.partial_blobs.truncate(self._descriptor.digest)
            return keep_file(context.store, planned, start, spool.read_at)
