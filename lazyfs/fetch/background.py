"""The background fetch: fetches what no reader has asked for yet, and gives way to readers.

It follows the order of order.py in long runs, at the speed of a full pull and with as few requests. When everything is in the
store, the image does not need its registry any more.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Container, Iterable, Sequence
from typing import Final, NamedTuple

import trio

from lazyfs.errors import InvalidInput, LocalError
from lazyfs.fetch.claim import BRIDGE
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.order import prefetch_order
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.fetch.window import MOST_PIECES
from lazyfs.store.content import Content
from lazyfs.store.store import Store
from lazyfs.store.tally import Missing, Tally
from lazyfs.tasks import Failures

_log = logging.getLogger(__name__)

RUN_BYTES: Final = 16 << 20
"""Compressed bytes per request, so many that a round trip does not matter."""
_SLOWEST: Final = 60.0


class Wanted(NamedTuple):
    """A layer, and the end of its prefetch range: the blob offset up to which its author wants it first (0: no landmark)."""

    layer: LayerBlob
    prefetch_end: int


class _Backoff:
    """The wait between tries without progress."""

    def __init__(self) -> None:
        self._seconds = 1.0

    async def sleep(self) -> None:
        await trio.sleep(self._seconds * random.uniform(0.8, 1.2))  # jitter, not a secret
        self._seconds = min(2 * self._seconds, _SLOWEST)


class Background:
    """Fetches the missing chunks of an image, or with `rest` False only the prefetch ranges. `finished` is set when nothing is
    missing."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        layers: Sequence[Wanted],
        *,
        rest: bool = True,
        subject: str = "",
        failures: Failures | None = None,
    ) -> None:
        """`subject` names what is fetched, for the log; `failures` counts unexpected errors."""
        self._store = store
        self._fetcher = fetcher
        self._layers = layers
        self._rest = rest
        self._subject = subject
        self._failures = failures or Failures()
        self.finished = trio.Event()
        self.trouble = ""
        """Why it is stalled, or why it gave something up; empty while all is well."""
        self.is_stalled = False
        """Its last request failed without progress. It will try again, and others may go first."""

    async def run(self) -> None:
        """Run until everything wanted is in the store, or the rest is damaged at the source. While the source fails, retry with
        growing pauses.

        No reader waits for it, so it raises nothing: errors are logged and reported as `trouble`. Cancelled: stops; what has
        arrived is kept.
        """
        try:
            await self._run()
        except Exception as surprise:  # noqa: BLE001  it must not end a mount, or lazyfsd, for those who read
            cause = self._failures.record("background fetch", surprise, self._subject)
            self.trouble = f"the background fetch failed: {cause!r}"

    async def _run(self) -> None:
        given_up = False
        for layer, pieces in prefetch_order(self._layers, rest=self._rest):
            given_up |= await self._fetch_layer(layer, pieces)
        if not given_up:
            self.trouble = ""
            if self._rest:
                self.finished.set()

    async def _fetch_layer(self, layer: LayerBlob, pieces: Sequence[Piece]) -> bool:
        """Returns True if a piece had to be given up. Each pass looks at all pieces once, and ends only after its last run."""
        bad: set[bytes] = set()
        doubtful: set[bytes] = set()  # of runs with an error: each is fetched alone, to find the bad one
        before = -1
        backoff = _Backoff()
        while True:
            missing = [piece for piece in await self._missing(pieces) if piece.chunk.digest not in bad]
            if not missing:
                return bool(bad)
            if len(missing) == before:
                await backoff.sleep()  # readers and other processes are fetching the rest
            else:
                backoff = _Backoff()
            before = len(missing)
            ranges = self._fetcher.sends_ranges(layer)
            for run in cut_runs(missing, doubtful) if ranges else [missing]:
                if ranges and not self._fetcher.sends_ranges(layer):
                    break  # now each of the runs would stream the whole blob
                failure = await self._fetch_run(layer, run)
                if isinstance(failure, LocalError):
                    return True
                if failure is not None:
                    (doubtful if ranges and len(run) > 1 else bad).update(piece.chunk.digest for piece in run)
                    before = -1

    async def _fetch_run(self, layer: LayerBlob, run: Sequence[Piece]) -> InvalidInput | LocalError | None:
        """Fetch a run until all of it is in the store, or others are fetching the rest. Returns an error that a retry would not
        fix. While the source is unreachable or the store is full, retry with growing pauses."""
        backoff = _Backoff()
        tried = run
        while True:
            failure = await self._fetcher.fetch(layer, tried)
            if failure is None:
                self.is_stalled = False
            if failure is not None:
                self._report(layer, failure)
            if isinstance(failure, InvalidInput):
                return failure
            full = isinstance(failure, LocalError)
            if isinstance(failure, LocalError) and layer.whole is not None:
                return failure  # finding out whether there is room again would mean downloading all of it again
            if failure is None and len({piece.chunk.digest for piece in run}) == len(run) == len(tried):
                return None
            # A chunk that the run has in several places is fetched for one of them, and later copied to the others.
            left = await self._missing(run)
            if not left or (failure is None and len(left) == len(run)):
                return None
            self.is_stalled = failure is not None and len(left) == len(run)
            if len(left) == len(run):
                await backoff.sleep()
            else:
                backoff = _Backoff()
            run = left
            # One chunk is enough to find out whether there is room again; a whole run would be downloaded in vain.
            tried = left[:1] if full else left

    async def _missing(self, pieces: Sequence[Piece]) -> list[Piece]:
        return await trio.to_thread.run_sync(missing_pieces, self._store, pieces)

    def _report(self, layer: LayerBlob, failure: Exception) -> None:
        trouble = f"the background fetch of layer {layer.digest} of {self._subject or self._fetcher.image} is stalled: {failure}"
        if trouble != self.trouble and not isinstance(failure, LocalError):  # the fetcher has logged that
            _log.warning("%s", trouble)
        self.trouble = trouble


def missing_pieces(store: Store, pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces that are not in the store, in the given order. Each position of a content is listed once, though equal chunks
    have several. Blocking."""
    pieces = list(pieces)
    contents: dict[str, Content] = {}
    wanted: dict[str, int] = {}
    for piece in pieces:
        contents[piece.content.name] = piece.content
        wanted[piece.content.name] = wanted.get(piece.content.name, 0) + 1
    # A run may be a small part of a large file.
    few = [piece for piece in pieces if 4 * wanted[piece.content.name] < len(piece.content.digests)]
    most = [content for name, content in contents.items() if 4 * wanted[name] >= len(content.digests)]
    missing = {content.name: set(numbers) for content, numbers in zip(most, store.missing_many(most), strict=True)}
    for piece, lacks in zip(few, store.lacking([(piece.content, piece.number) for piece in few]), strict=True):
        if lacks:
            missing.setdefault(piece.content.name, set()).add(piece.number)
    found = []
    for piece in pieces:
        numbers = missing.get(piece.content.name)
        if numbers and piece.number in numbers:
            numbers.discard(piece.number)
            found.append(piece)
    return found


def tally_of(store: Store, layers: Iterable[LayerBlob]) -> Tally:
    """A tally of what is missing of these layers, for callers that ask often. Blocking."""
    return store.tally(piece.content for layer in layers for piece in layer.pieces)


def measure_missing(store: Store, layers: Iterable[LayerBlob]) -> Missing:
    """What of these layers is not in the store; equal chunks count once. Blocking, and looks at every piece."""
    pieces = missing_pieces(store, (piece for layer in layers for piece in layer.pieces))
    missing = {piece.chunk.digest: piece.chunk.size for piece in pieces}
    return Missing(len(missing), sum(missing.values()))


def cut_runs(pieces: Sequence[Piece], alone: Container[bytes] = ()) -> list[list[Piece]]:
    """Runs of at most RUN_BYTES and MOST_PIECES, but always of whole members, which are inflated from their start. A new run
    begins where stored chunks lie between, or where the order goes backwards. Pieces with a digest in `alone` get a run each.
    """
    runs: list[list[Piece]] = []
    for piece in pieces:
        last = runs[-1] if runs else None
        chunk = piece.chunk
        if (
            last is not None
            and chunk.digest not in alone
            and last[-1].chunk.digest not in alone
            and last[-1].chunk.member <= chunk.member <= last[-1].chunk.member_end + BRIDGE
            and (
                chunk.member == last[-1].chunk.member
                or (chunk.member_end - last[0].chunk.member <= RUN_BYTES and len(last) < MOST_PIECES)
            )
        ):
            last.append(piece)
        else:
            runs.append([piece])
    return runs
