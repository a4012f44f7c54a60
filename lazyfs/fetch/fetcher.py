"""The fetcher: every byte of a file, from the store if it is there, from the source if not.

The order of a miss:

1. A flight for the chunk is in the air: wait for it.
2. Else choose a run: the chunk, and the missing neighbours behind it that the window allows. All get a flight at once,
   so that no second run can hold them.
3. In a thread, claim the run and look again: what arrived meanwhile, what lies in another file of the store (copied, not
   fetched), what another process is fetching right now (its claim in the store says so) falls out of the run. Short runs
   that begin at the same time do this together, and what they bring is unpacked together (gather.py).
4. One range request; each chunk lands its flight as soon as it is verified and kept.

A layer that is not lazy has no ranges: whatever is missing of it, all of it is fetched, and all that is missing kept.

A run belongs to the fetcher's nursery, not to the reader who caused it: a reader that is cancelled stops waiting, and
the bytes under way are kept for the next one.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from lazyfs.errors import LazyfsError, LocalError, RangeIgnored, SourceError, Unreachable
from lazyfs.fetch.claim import Order, claim_missing, claim_together, missing_of
from lazyfs.fetch.flight import Board
from lazyfs.fetch.gather import Gather
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.fetch.run import Run
from lazyfs.fetch.statistics import FetchStatistics
from lazyfs.fetch.traffic import Traffic
from lazyfs.fetch.unpack import Unpacked, unpack_together
from lazyfs.fetch.whole_run import WholeRun
from lazyfs.fetch.window import Windows
from lazyfs.source.protocol import ImageSource
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

READ_DEADLINE: Final = 60.0
"""Seconds until a read that waits for the network gives up."""
_SLOW_LINE: Final = 1_000_000
"""Bytes a second that the network must bring of a layer that comes whole, on top of that: it may have gigabytes."""
_RUNS: Final = 48
"""Range requests of readers at once; the background has its own, and so have runs of large members. 64 readers of 1,280 files that lie
strewn, 20 ms away: the round trips alone take 1.6 s with 16, and all of it 15 % longer with 32 than with 64 (bench/late.py)."""
_CROWD: Final = 8
"""Runs on their way, or waiting for their turn, from which on a lone miss brings no neighbours."""
_FEW: Final = 8
"""Pieces that are claimed together with those of other runs. Longer runs have a thread of their own: others do not wait for them."""
_LARGE: Final = 512 << 10
"""Compressed bytes of a member from which on a run is a large one: it lies in memory as a whole until it is unpacked."""
_LARGE_RUNS: Final = 8
"""Large ones at once, of 4 MiB by default."""
_TURN: Final = 0.1
"""Seconds that a run waits for its turn before it is looked what of it is here: usually a look costs more than the wait."""
_UNKEPT_BYTES: Final = 32 << 20
"""What a full store cannot take is remembered in memory this far: the kernel reads a 4 MiB chunk in 4 to 32 requests."""
_CLAIM_POLL: Final = 0.02
_PATIENCE: Final = 5.0
"""Seconds for which the background gives way in the middle of a run. Then it gives the run up: a reader of another process
may be waiting for what it has claimed, and no server waits for ever."""


class Fetcher:
    """Reads chunks of one image's layers. Made by `open_fetcher`."""

    def __init__(self, store: Store, source: ImageSource, nursery: trio.Nursery, traffic: Traffic) -> None:
        self._store = store
        self._source = source
        self._nursery = nursery
        self._board = Board()
        self._traffic = traffic
        self._windows: dict[str, Windows] = {}
        self._rangeless: set[str] = set()
        # Inflating and hashing is CPU: more jobs than cores would only share them. Reads of the store have their own
        # threads, so that what is here never queues behind what is arriving.
        self._unpackers = trio.CapacityLimiter((os.cpu_count() or 1) + 1)
        self._readers = trio.CapacityLimiter(16)
        self._claims = Gather(partial(claim_together, store), self._readers, trips=1)  # the index answers one at a time
        self._small = Gather(partial(unpack_together, store), self._unpackers, trips=2)  # a disk may be slow
        self._jobs = trio.Semaphore(int(self._unpackers.total_tokens))  # each holds a chunk twice: 8 MiB by default
        self._slots = trio.Semaphore(_RUNS)
        self._large_slots = trio.Semaphore(_LARGE_RUNS)
        self._runs = 0
        """Of readers, on their way or waiting for their turn."""
        self._unkept: OrderedDict[bytes, memoryview] = OrderedDict()
        self._unkept_bytes = 0
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._closed = False

    def statistics(self) -> FetchStatistics:
        """What happened so far."""
        c = self._counts
        return FetchStatistics(c["requests"], c["received"], c["chunks"], c["unpacked"], c["unkept"], dict(self._errors))

    def sends_ranges(self, layer: LayerBlob) -> bool:
        """False for a layer that is not lazy, and once the source has answered a range of it with the whole blob."""
        return layer.whole is None and layer.digest not in self._rangeless

    async def read(self, layer: LayerBlob, piece: Piece, start: int, length: int) -> bytes | memoryview:
        """Bytes `[start, start + length)` of a chunk.

        Raises SourceError when they cannot be had before the deadline, InvalidInput when they are not what the TOC
        promised. The next read tries from scratch. Cancelled: what is under way arrives all the same.
        """
        digest = piece.chunk.digest
        patience = _patience(layer)
        with trio.move_on_after(patience):
            while True:
                unkept = self._unkept.get(digest)
                if unkept is not None:
                    return unkept[start : start + length]
                if digest not in self._board:
                    look = partial(self._store.read, piece.content, piece.number, start, length)
                    here = await trio.to_thread.run_sync(look, limiter=self._readers)
                    if here is not None:
                        return here
                with self._traffic.reader():
                    data = await self._wait_for(layer, piece)
                if data is not None:
                    return data[start : start + length]
        self._errors[Unreachable.__name__] += 1
        raise Unreachable(
            f"{self._source.name} did not bring layer {layer.digest} at offset {piece.chunk.member} in {patience:.0f} s"
        )

    async def bring(self, layer: LayerBlob, piece: Piece) -> bool:
        """Make the object of a single chunk, for a reader who will open it by its name. False where the store does not take it.

        Not looked for first: whoever asks has not found it. Raises as `read`, and has no deadline of its own. Cancelled: what is
        under way arrives all the same.
        """
        digest = piece.chunk.digest
        place = self._store.directory.objects + piece.content.name
        suspicious = False
        while digest not in self._unkept:
            with self._traffic.reader():
                data = await self._wait_for(layer, piece)
            # What came may have come as a chunk of another file, and been kept as that; or there was no room for it.
            if data is not None and os.path.exists(place):
                return True
            # Most flights that land empty-handed were cut off from a run: a look saves the thread. But what is never there may be
            # an object that the index has and the disk has not.
            if (suspicious or os.path.exists(place)) and await trio.to_thread.run_sync(
                self._store.publish, piece.content, limiter=self._readers
            ):
                return True
            suspicious = True
        return False

    def close(self) -> None:
        """The image is no more: whoever waits is told so, and so is whoever comes."""
        self._closed = True
        self._board.land_all(self._gone())

    def _gone(self) -> Unreachable:
        return Unreachable(f"{self._source.name} is not mounted any more")

    async def _wait_for(self, layer: LayerBlob, piece: Piece) -> memoryview | None:
        flight = self._board.get(piece.chunk.digest)
        if flight is not None:
            try:
                return await flight.wait()
            except SourceError:
                pass  # another reader's run failed, perhaps far from this chunk: ours has a try of its own
        if self._closed:
            raise self._gone()
        flight = self._board.get(piece.chunk.digest)
        if flight is None:
            pieces = self._choose(layer, piece)
            self._board.take_off(each.chunk.digest for each in pieces)
            flight = self._board.get(piece.chunk.digest)
            assert flight is not None
            self._runs += 1
            self._nursery.start_soon(self._run_for_reader, layer, pieces)
        return await flight.wait()

    def _choose(self, layer: LayerBlob, piece: Piece) -> list[Piece]:
        """The run for a miss of `piece`, which stands first: the rest of its member, and what the window allows behind it."""
        chosen = [piece]
        if not self.sends_ranges(layer):
            chosen += [each for each in layer.pieces if each.chunk.digest not in self._board and each != piece]
            return chosen
        windows = self._windows.setdefault(layer.digest, Windows())
        window = windows.open(piece, crowded=self._runs >= _CROWD)
        start = piece.chunk.member
        end = own_end = piece.chunk.member_end
        for position in range(layer.position(start), len(layer.pieces)):
            each = layer.pieces[position]
            chunk = each.chunk
            own = each.content.name == window.name
            if chunk.member != start and chunk.member_end > (start + window.inside if own else own_end + window.across):
                break
            if own:
                own_end = max(own_end, chunk.member_end)
            if chunk.digest not in self._board and each != piece:
                chosen.append(each)
                end = chunk.member_end
        windows.asked(window, start, end, end == own_end)
        return chosen

    async def _run_for_reader(self, layer: LayerBlob, pieces: list[Piece]) -> None:
        async def never() -> bool:
            """Somebody waits: no pause."""
            return True

        large = max(piece.chunk.member_end - piece.chunk.member for piece in pieces) > _LARGE
        slots = self._large_slots if large else self._slots
        try:
            with trio.move_on_after(_TURN) as soon:
                await _acquire(slots)
            if soon.cancelled_caught:
                pieces = await self._land_what_is_here(pieces)
                if not pieces:
                    return
                await slots.acquire()
            try:
                await self._run(layer, pieces, never, together=self.sends_ranges(layer))
            finally:
                slots.release()
        finally:
            self._runs -= 1

    async def _land_what_is_here(self, pieces: list[Piece]) -> list[Piece]:
        """The rest of a run that must wait for its turn: with the source away that lasts, and what is here need not wait.

        Nothing, where the first piece is here: it was the reason for the run.
        """
        first = pieces[0]

        def look() -> set[bytes]:
            missing = {piece.chunk.digest for piece in missing_of(self._store, pieces)}
            if first.chunk.digest not in missing:
                return {piece.chunk.digest for piece in pieces}
            # The first piece's own readers would find nothing, even where an equal chunk of another file is here.
            return {piece.chunk.digest for piece in pieces} - missing

        here = await trio.to_thread.run_sync(look, limiter=self._readers)
        for digest in here:
            self._board.land(digest)
        return [piece for piece in pieces if piece.chunk.digest not in here]

    async def fetch(self, layer: LayerBlob, pieces: Sequence[Piece]) -> Exception | None:
        """Bring `pieces` for the background, giving way to readers. Returns what went wrong, if something did.

        Cancelled: stops; what had arrived is kept.
        """
        await self._traffic.give_way(lambda: False)
        free = [piece for piece in pieces if piece.chunk.digest not in self._board]
        digests = [piece.chunk.digest for piece in free]
        self._board.take_off(digests)

        async def pause() -> bool:
            with trio.move_on_after(_PATIENCE) as scope:
                await self._traffic.give_way(lambda: self._board.awaited(digests))
            return not scope.cancelled_caught

        return await self._run(layer, free, pause, together=False) if free else None

    async def _run(
        self, layer: LayerBlob, pieces: list[Piece], pause: Callable[[], Awaitable[bool]], *, together: bool
    ) -> Exception | None:
        """Bring `pieces` and land their flights, whatever happens. `together`: nothing is fetched but with the first."""
        claimed: list[Piece] = []
        failure: Exception | None = None
        first_bad: Exception | None = None
        airborne = {piece.chunk.digest for piece in pieces}

        def land(digest: bytes, data: memoryview | None = None, error: Exception | None = None) -> None:
            # Once each: by now the board may hold another run's flight for a chunk that we have landed.
            if digest in airborne:
                airborne.discard(digest)
                self._board.land(digest, data, error)

        def landed(result: Unpacked) -> None:
            nonlocal first_bad
            digest = result.piece.chunk.digest
            if result.error is not None:
                first_bad = first_bad or result.error
                self._errors[type(result.error).__name__] += 1
            else:
                self._counts["chunks"] += 1
                self._counts["unpacked"] += result.piece.chunk.size
            if result.data is not None and result.refusal is not None:
                first_bad = first_bad or result.refusal
                self._remember(digest, result.data, result.refusal)
            land(digest, result.data, result.error)

        def received(count: int) -> None:
            self._counts["received"] += count

        try:
            if layer.whole is not None:
                await self._fetch_whole(WholeRun(self._store, self._source, layer.whole, landed, received), pieces, land)
                return first_bad
            claimed = await self._claim(Order(pieces, pieces[0] if together else None, layer.digest in self._rangeless))
            wanted = {piece.chunk.digest for piece in claimed}
            for piece in pieces:
                if piece.chunk.digest not in wanted and not (together and piece is pieces[0]):
                    land(piece.chunk.digest)
            if claimed:
                self._counts["requests"] += 1
                run = Run(self._store, self._source, layer, self._unpackers, self._jobs, self._small, landed, received, pause)
                await run.fly(claimed, whole=layer.digest in self._rangeless)
            elif together:
                # It arrived meanwhile, or another process is bringing it: its readers look again, but do not spin.
                await trio.sleep(_CLAIM_POLL)
        except RangeIgnored:
            self._rangeless.add(layer.digest)
            _log.info("%s answers ranges with whole blobs: layer %s is streamed once instead", self._source.name, layer.digest)
        except Exception as error:  # noqa: BLE001  # not swallowed: it goes to those who asked, and on to their guard
            failure = error
            self._errors[type(error).__name__] += 1
        finally:
            for piece in claimed:
                self._store.release(piece.chunk.digest)
            for digest in tuple(airborne):
                land(digest, None, failure)
        return failure or first_bad

    async def _claim(self, order: Order) -> list[Piece]:
        """See `claim_missing`."""
        answer = await self._claims.do(order) if len(order.pieces) <= _FEW else None
        if answer is None:
            answer = await trio.to_thread.run_sync(partial(claim_missing, self._store, order), limiter=self._readers)
        return answer

    async def _fetch_whole(self, run: WholeRun, pieces: list[Piece], land: Callable[[bytes], None]) -> None:
        missing = await trio.to_thread.run_sync(run.missing, pieces, limiter=self._readers)
        wanted = {piece.chunk.digest for piece in missing}
        for piece in pieces:
            if piece.chunk.digest not in wanted:
                land(piece.chunk.digest)
        if missing:
            self._counts["requests"] += 1
            await run.fly(missing)

    def _remember(self, digest: bytes, data: memoryview, refusal: LocalError) -> None:
        if not self._counts["unkept"]:
            _log.warning("what arrives is served, but not kept: %s", refusal)
        self._counts["unkept"] += 1
        if digest not in self._unkept:
            self._unkept[digest] = data
            self._unkept_bytes += len(data)
        while self._unkept_bytes > _UNKEPT_BYTES and len(self._unkept) > 1:
            self._unkept_bytes -= len(self._unkept.popitem(last=False)[1])


async def _acquire(slots: trio.Semaphore) -> None:
    # One that is free costs a turn of the event loop when it is awaited.
    try:
        slots.acquire_nowait()
    except trio.WouldBlock:
        await slots.acquire()


def _patience(layer: LayerBlob) -> float:
    return READ_DEADLINE + layer.size / _SLOW_LINE if layer.whole is not None else READ_DEADLINE


@asynccontextmanager
async def open_fetcher(store: Store, source: ImageSource, traffic: Traffic | None = None) -> AsyncIterator[Fetcher]:
    """A fetcher whose runs live as long as the block: leaving it cancels what is under way.

    Fetchers that share a `traffic` share a line: the background of each gives way to the readers of all.
    """
    failure: LazyfsError | None = None
    async with trio.open_nursery() as nursery:
        fetcher = Fetcher(store, source, nursery, traffic or Traffic())
        try:
            yield fetcher
        except LazyfsError as error:
            failure = error  # a nursery would wrap it in a group, and it is for the user to read
        finally:
            fetcher.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
