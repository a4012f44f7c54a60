"""The pull finishes: what no reader has asked for yet is fetched all the same, behind what readers wait for.

First each layer's prefetch prefix (what its author says a start needs), then the rest, layer by layer, in long runs
in the blob's own order: at the speed of a full pull, and with as few requests. When everything is here, the image
needs no registry any more.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Container, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

import trio

from lazyfs.errors import InvalidInput, LocalError
from lazyfs.fetch.claim import BRIDGE
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

RUN_BYTES: Final = 16 << 20
"""Compressed bytes a request: long enough that a round trip is nothing beside it."""
_SLOWEST: Final = 60.0


class Wanted(NamedTuple):
    """A layer, and the blob offset up to which its author wants it first (0: no landmark)."""

    layer: LayerBlob
    prefetch_end: int


class Missing(NamedTuple):
    """What is not here yet."""

    chunks: int
    size: int
    """Uncompressed bytes."""


class Background:
    """Brings an image's missing chunks, or without `rest` only the layers' prefixes. `finished` is set when nothing is missing."""

    def __init__(self, store: Store, fetcher: Fetcher, layers: Sequence[Wanted], *, rest: bool = True) -> None:
        self._store = store
        self._fetcher = fetcher
        self._layers = layers
        self._rest = rest
        self.finished = trio.Event()
        self.trouble = ""
        """Why it stands still, or why it gave something up; empty while all is well."""

    async def run(self) -> None:
        """Until what is wanted is here, or what is left is damaged at the source. Tries again, ever slower, while the source fails.

        Cancelled: stops; what had arrived is kept.
        """
        given_up = False
        for wanted in self._layers:
            prefix = wanted.layer.pieces[: wanted.layer.position(wanted.prefetch_end)]
            given_up |= await self._bring(wanted.layer, prefix)
        for wanted in self._layers if self._rest else ():
            given_up |= await self._bring(wanted.layer, wanted.layer.pieces)
        if not given_up:
            self.trouble = ""
            if self._rest:
                self.finished.set()

    async def _bring(self, layer: LayerBlob, pieces: Sequence[Piece]) -> bool:
        """True where a piece had to be given up."""
        bad: set[bytes] = set()
        doubtful: set[bytes] = set()  # of runs in which something was wrong: each alone, to see what
        before = -1
        pause = 1.0
        full = False
        while True:
            look = partial(missing_pieces, self._store, pieces)
            missing = [piece for piece in await trio.to_thread.run_sync(look) if piece.chunk.digest not in bad]
            if not missing:
                return bool(bad)
            if len(missing) == before:
                # The source is away, the store is full, or readers and other processes are at what is left.
                await trio.sleep(pause * random.uniform(0.8, 1.2))  # jitter, not a secret
                pause = min(2 * pause, _SLOWEST)
            else:
                pause = 1.0
            before = len(missing)
            ranges = self._fetcher.sends_ranges(layer)
            runs = cut_runs(missing, doubtful) if ranges else [missing]
            if full:
                runs = [missing[:1]]  # one chunk finds out whether there is room again; a run would be downloaded for nothing
                full = False
            for run in runs:
                if ranges and not self._fetcher.sends_ranges(layer):
                    break  # each of the runs would be a stream of the whole blob
                failure = await self._fetcher.fetch(layer, run)
                if failure is not None:
                    self._report(layer, failure)
                    full = isinstance(failure, LocalError)
                    if full and layer.whole is not None:
                        return True  # to find out whether there is room again would be to download all of it again
                    if not isinstance(failure, InvalidInput):
                        break
                    (doubtful if ranges and len(run) > 1 else bad).update(piece.chunk.digest for piece in run)
                    before = -1

    def _report(self, layer: LayerBlob, failure: Exception) -> None:
        trouble = f"the background fetch of layer {layer.digest} stands still: {failure}"
        if trouble != self.trouble and not isinstance(failure, LocalError):  # of that the fetcher has warned
            _log.warning("%s", trouble)
        self.trouble = trouble


def missing_pieces(store: Store, pieces: Iterable[Piece]) -> list[Piece]:
    """Blocking. Those that are not in the store, in the order given; each place in a content once: equal chunks have several."""
    pieces = list(pieces)
    contents = list({piece.content.name: piece.content for piece in pieces}.values())
    missing = {
        (content.name, number)
        for content, numbers in zip(contents, store.missing_many(contents), strict=True)
        for number in numbers
    }
    return list({slot: piece for piece in reversed(pieces) if (slot := (piece.content.name, piece.number)) in missing}.values())[
        ::-1
    ]


def measure_missing(store: Store, layers: Iterable[LayerBlob]) -> Missing:
    """Blocking. What of these layers is not in the store, equal chunks counted once."""
    pieces = missing_pieces(store, (piece for layer in layers for piece in layer.pieces))
    missing = {piece.chunk.digest: piece.chunk.size for piece in pieces}
    return Missing(len(missing), sum(missing.values()))


def cut_runs(pieces: Sequence[Piece], alone: Container[bytes] = ()) -> list[list[Piece]]:
    """Runs of at most RUN_BYTES; a new one wherever something that is here lies between. Of one piece for the digests `alone`."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        last = runs[-1] if runs else None
        chunk = piece.chunk
        if (
            last is not None
            and chunk.digest not in alone
            and last[-1].chunk.digest not in alone
            and chunk.member <= last[-1].chunk.member_end + BRIDGE
            and chunk.member_end - last[0].chunk.member <= RUN_BYTES
        ):
            last.append(piece)
        else:
            runs.append([piece])
    return runs
