"""A run: pieces of one layer that are fetched together, from claiming them to completing the last of their flights.

A run belongs to the fetcher, not to the reader that caused it. A reader that is cancelled or misses its deadline stops waiting,
and the bytes in flight are kept for the next one. Only a run without progress is given up (flight.py): its flights are
completed without data, so that their readers start another run.

Bytes that do not match the TOC are fetched a second time over another connection before any reader gets an error: the cause may
be a cache on the way, or a connection out of step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from lazyfs.errors import HeldOff, RangeIgnored, Unreachable
from lazyfs.fetch.claim import ClaimRequest, claim_missing, missing_of
from lazyfs.fetch.flight import Flight
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.fetch.shared import Shared
from lazyfs.fetch.slots import Slots
from lazyfs.fetch.transfer import Transfer
from lazyfs.fetch.unpack import Unpacked
from lazyfs.fetch.whole_run import WholeRun
from lazyfs.image.layer import Layer
from lazyfs.tasks import cause_of

_log = logging.getLogger(__name__)

_FEW: Final = 8
"""Runs of up to this many pieces are claimed together with others. Longer runs use their own call in a thread, so that others
do not wait.
"""
_SLOT_WAIT: Final = 0.1
"""Seconds that a run waits for a slot before it looks for its pieces in the store: usually the look costs more than the wait.
"""
_CLAIM_POLL: Final = 0.02
_TIME_TO_ANSWER: Final = 10.0
"""Seconds that a reader must have left when a host may be asked again. If a read fails at once, the kernel repeats it at once;
its deadline is then only a moment later, and it must not have to wait for all of that.
"""


_HOST_TIMEOUT: Final = 50.0
"""Seconds for which a run without a reader waits for a host that asks for a pause: a reader that joins it waits as long."""


async def no_pause() -> bool:
    """The `pause` of a run with a reader: none."""
    return True


class Run:
    """One run. Its flights start when it is created; `fetch` completes them in any case."""

    def __init__(
        self,
        shared: Shared,
        layer: LayerBlob,
        pieces: list[Piece],
        *,
        wanted: Piece | None = None,
        deadline: float = -math.inf,
        ignore_claim: bool = False,
        rest: bool = False,
    ) -> None:
        """`wanted`: if this piece need not be fetched, nothing is. `ignore_claim`: fetch it even if another process has claimed
        it.

        `deadline`: the reader's. If a host asks for a pause that ends earlier, the run waits.

        `rest`: a layer without ranges is fetched whole, and everything missing of it is kept; `pieces` are those that readers
        wait for.
        """
        self._shared = shared
        self._layer = layer
        self._pieces = pieces
        self._wanted = wanted
        self._deadline = deadline
        self._insist = ignore_claim
        self._rest = rest
        self._as_a_whole = layer.whole is not None or layer.digest in shared.rangeless
        self._expected: set[bytes] | None = None
        """Digests of chunks that are still to arrive; None until that is known."""
        self._claimed: list[Piece] = []
        self._wrong: list[Piece] = []
        """Pieces that did not match at the first try."""
        self._is_last_try = layer.whole is not None
        self._first_error: Exception | None = None
        self.flights = shared.flights.start_run(piece.chunk.digest for piece in pieces)
        self.has_ended = False
        self._end: trio.Event | None = None
        """Created when somebody waits for the end, which is rare."""

    def join(self, piece: Piece) -> Flight | None:
        """The flight for one more piece of a layer that is fetched whole; None if this run does not fetch it any more."""
        digest = piece.chunk.digest
        if self.has_ended or self.flights.given_up or (self._expected is not None and digest not in self._expected):
            return None
        if self._expected is None:
            self._pieces.append(piece)
        return self.flights.start(digest)

    async def fetch(self, pause: Callable[[], Awaitable[bool]] = no_pause, slots: Slots | None = None) -> Exception | None:
        """Fetch the pieces, after taking a slot if `slots` is given. Returns the error, if there was one.

        Cancelled: what has arrived is kept, and readers that wait look again.
        """
        failure: Exception | None = None
        try:
            await self._fetch_in_slot(pause, slots)
        except RangeIgnored:
            self._shared.rangeless.add(self._layer.digest)
            _log.info(
                "%s answers ranges with whole blobs: streaming layer %s once instead",
                self._shared.image,
                self._layer.digest,
            )
        except Exception as error:  # noqa: BLE001  # not swallowed: the readers get it, and raise it on
            failure = cause_of(error)
            self._shared.errors[type(failure).__name__] += 1
        finally:
            try:
                for piece in self._claimed:
                    self._shared.store.release(piece.chunk.digest)
            finally:
                if slots is not None:
                    slots.release(self.flights.progress)
                self.has_ended = True
                self.flights.complete_all(failure)
                if self._end is not None:
                    self._end.set()
        return failure or self._first_error

    async def _fetch_in_slot(self, pause: Callable[[], Awaitable[bool]], slots: Slots | None) -> None:
        flights, progress = self.flights, self.flights.progress
        # One scope for the wait, which seldom takes _SLOT_WAIT, and for the rest: with many readers, the cost of scopes adds
        # up.
        with flights.scope as scope:
            if slots is None or slots.try_acquire(progress) or await self._acquire_slot_soon(slots, scope):
                return await self._fetch_pieces(pause)
        if slots is not None and not flights.given_up:
            flights.scope = trio.CancelScope()
            with flights.scope:
                if not slots.has(progress):
                    await self._complete_stored()
                    if not self._pieces:
                        return None
                    await slots.acquire(progress)
                return await self._fetch_pieces(pause)
        raise Unreachable(f"{self._shared.image} has stopped sending layer {self._layer.digest}")

    async def _acquire_slot_soon(self, slots: Slots, scope: trio.CancelScope) -> bool:
        """Take a slot within _SLOT_WAIT. If it returns False, or is cancelled by `scope`, the time was up; the slot may be
        taken all the same."""
        scope.deadline = trio.current_time() + _SLOT_WAIT
        await slots.acquire(self.flights.progress)
        scope.deadline = math.inf
        return not scope.cancel_called

    async def wait_for_end(self) -> None:
        """Wait until `fetch` has ended."""
        if not self.has_ended:
            self._end = self._end or trio.Event()
            await self._end.wait()

    async def _complete_stored(self) -> None:
        """Complete the flights of pieces that are in the store, while the run waits for a slot: that lasts long if the source
        is unreachable.

        If the wanted piece is in the store, complete all flights: it was the reason for the run.
        """
        pieces, wanted = list(self._pieces), self._wanted
        missing = {piece.chunk.digest for piece in await self._in_thread(partial(missing_of, self._shared.store, pieces))}
        if wanted is not None and wanted.chunk.digest not in missing:
            # Its own readers would find nothing otherwise, even if an equal chunk of another file is in the store.
            missing.clear()
        for piece in pieces:
            if piece.chunk.digest not in missing:
                self.flights.complete(piece.chunk.digest)
        self._pieces = [piece for piece in self._pieces if piece.chunk.digest in self.flights]

    async def _fetch_pieces(self, pause: Callable[[], Awaitable[bool]]) -> None:
        if self._layer.whole is not None:
            await self._fetch_whole(self._layer.whole)
            return
        rangeless = self._as_a_whole
        if rangeless != (self._layer.digest in self._shared.rangeless):
            return  # found out while this run waited for a slot: readers join the run that fetches all of the layer
        await self._claim(gaps=rangeless)
        coming = {piece.chunk.digest for piece in self._claimed}
        if self._claimed:
            self._expect(coming)
            # Without a reader, the run continues later by itself.
            latest = (
                max(self._deadline - _TIME_TO_ANSWER, trio.current_time())
                if self._wanted
                else trio.current_time() + _HOST_TIMEOUT
            )
            transfer = Transfer(self._shared, self._layer, self.flights.progress, self._on_piece, pause, latest)
            await self._transfer(transfer, self._claimed)
            if self._wrong:
                self._is_last_try = True
                self._note_wrong()
                await self._transfer(transfer, self._still_expected())
        elif self._wanted is not None:
            self._expect({self._wanted.chunk.digest})
            # It has arrived meanwhile, or another process is fetching it: its readers look again, but not in a tight loop.
            await trio.sleep(_CLAIM_POLL)

    async def _claim(self, *, gaps: bool) -> None:
        """Claim what has to be fetched."""
        # A copy, because a thread reads it while more readers may join.
        request = ClaimRequest(tuple(self._pieces), self._wanted, gaps, self._insist)
        claimed = await self._shared.claims.submit(request) if len(request.pieces) <= _FEW else None
        if claimed is None:
            claimed = await self._in_thread(partial(claim_missing, self._shared.store, request))
        self._claimed = claimed
        if self._rest and claimed:
            # Only after the first claim, because it looks at the whole layer.
            request = request._replace(pieces=self._layer.pieces)
            self._claimed = await self._in_thread(partial(claim_missing, self._shared.store, request))

    def _expect(self, coming: set[bytes]) -> None:
        """These are still to arrive. Readers of all other chunks look again: those are stored, or another process is fetching
        them."""
        self._expected = coming
        self.flights.complete_others(coming)

    async def _transfer(self, transfer: Transfer, pieces: list[Piece]) -> None:
        while pieces:
            try:
                await transfer.fetch(pieces, whole=self._as_a_whole)
            except HeldOff as error:
                await self._wait_for_host(error)
                pieces = self._still_expected()
            else:
                return

    async def _wait_for_host(self, error: HeldOff) -> None:
        """Wait until the host may be asked again. Raises `error` at once if that is too late for the reader."""
        if not trio.current_time() < error.until < self._deadline - _TIME_TO_ANSWER:
            raise error
        await trio.sleep_until(error.until)

    def _still_expected(self) -> list[Piece]:
        """What was claimed and has neither arrived nor failed to match for the first time, in blob order."""
        wrong = set() if self._is_last_try else {piece.chunk.digest for piece in self._wrong}
        coming = (self._expected or set()) - wrong
        return [piece for piece in self._claimed if piece.chunk.digest in coming]

    def _on_piece(self, result: Unpacked) -> None:
        piece, data, error, store_error = result
        digest = piece.chunk.digest
        shared = self._shared
        if error is None:
            shared.counts["chunks"] += 1
            shared.counts["unpacked"] += piece.chunk.size
        elif not self._is_last_try:
            self._wrong.append(piece)
            return
        else:
            self._first_error = self._first_error or error
            shared.errors[type(error).__name__] += 1
        if data is not None and store_error is not None:
            self._first_error = self._first_error or store_error
            shared.unkept.remember(digest, data, store_error, self._layer.digest)
        if self._expected is not None:
            self._expected.discard(digest)
        self.flights.complete(digest, data, error)

    async def _fetch_whole(self, layer: Layer) -> None:
        shared, progress = self._shared, self.flights.progress

        def pieces_in_flight() -> list[Piece]:
            return [piece for piece in self._pieces if piece.chunk.digest in self.flights]

        def received(count: int) -> None:
            shared.counts["received"] += count
            progress.count(count)

        run = WholeRun(shared.store, shared.source, layer, self._on_piece, received, progress.pause)
        missing = {piece.chunk.digest for piece in await self._in_thread(partial(run.missing, pieces_in_flight()))}
        if not missing:
            return
        self.flights.complete_others(missing)
        pieces = self._layer.pieces if self._rest else None
        shared.counts["requests"] += 1
        while True:
            try:
                await run.fetch(pieces_in_flight, pieces, self._expect)  # it has its own second try for wrong bytes
            except HeldOff as error:
                await self._wait_for_host(error)
            else:
                return

    def _note_wrong(self) -> None:
        shared = self._shared
        shared.source.distrust(self._layer.digest)
        shared.counts["wrong"] += 1
        if self._layer.digest not in shared.doubted:
            shared.doubted.add(self._layer.digest)
            _log.info(
                "the chunk at offset %d of layer %s of %s, of object %s, does not match its digest: fetching it once more",
                self._wrong[0].chunk.member,
                self._layer.digest,
                shared.image,
                self._wrong[0].content.name,
            )

    async def _in_thread(self, work: Callable[[], list[Piece]]) -> list[Piece]:
        return await trio.to_thread.run_sync(work, limiter=self._shared.readers)
