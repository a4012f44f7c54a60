"""A layer that is not lazy, fetched again, because something of it is not here any more: evicted, removed or damaged.

There is one tar, and no saying where in it a file lies; so it comes as it came the first time, verified as a whole, and its
files are found by what they hash to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from lazyfs.eager.fetch import fetch_tar
from lazyfs.errors import InvalidInput, LocalError
from lazyfs.fetch.claim import to_fetch
from lazyfs.fetch.piece import Piece
from lazyfs.fetch.unpack import Unpacked
from lazyfs.format.tar import read_tar
from lazyfs.image.layer import Layer
from lazyfs.layertar.content import read_content
from lazyfs.layertar.cut import DEFAULT
from lazyfs.layertar.plan import Planned
from lazyfs.layertar.spool import Spool
from lazyfs.source.protocol import ImageSource
from lazyfs.store.layer_lock import lock_layers
from lazyfs.store.store import Store

_BATCH: Final = 8 << 20
"""Bytes that are held before they are handed to whoever waits."""


class WholeRun(NamedTuple):
    """What `fetch` needs. `on_piece` hears of pieces, `on_bytes` of blob bytes, `on_tar` that all of them are here; in the event loop."""

    store: Store
    source: ImageSource
    layer: Layer
    on_piece: Callable[[Unpacked], None]
    on_bytes: Callable[[int], None]
    on_tar: Callable[[], None]

    def missing(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Blocking. Those of `pieces` that are not here, in no file of the store."""
        return to_fetch(self.store, pieces)

    async def fetch(
        self, asked: Callable[[], Sequence[Piece]], pieces: Sequence[Piece] | None, expect: Callable[[set[bytes]], None]
    ) -> None:
        """Bring `pieces` (None: those that are `asked` for), as far as they are not here: those are not told of.

        Where it is our turn and nothing is missing of what is asked for then, nothing is fetched. `expect` is told the digests of what
        `on_piece` will hear of. Raises SourceError, InvalidInput (the blob is not what it was), LocalError. Cancelled: what was told
        is kept.
        """
        layer = self.layer
        assert layer.whole is not None
        async with lock_layers(self.store, [layer.digest]) as locks:
            missing = await trio.to_thread.run_sync(self.missing, asked())
            if not missing:
                expect(set())
                return

            def arrived(count: int) -> None:
                trio.from_thread.run_sync(self.on_bytes, count)

            keep = locks.holds(layer.digest)
            tar = fetch_tar(self.source, layer.descriptor, layer.whole, self.store, _ignore, received=arrived, keep=keep)
            async with tar as spool:
                self.on_tar()
                # Looked for only now: with the source away, that would be all of a large layer for each read that fails.
                if pieces is not None:
                    missing = await trio.to_thread.run_sync(self.missing, pieces)
                wanted: dict[bytes, list[Piece]] = {}
                for piece in missing:
                    wanted.setdefault(piece.chunk.digest, []).append(piece)
                expect(set(wanted))
                found = self._find(spool, wanted)
                while some := await trio.to_thread.run_sync(_take, found):
                    for result in some:
                        self.on_piece(result)
            with suppress(LocalError):  # what is not kept has been told so
                await trio.to_thread.run_sync(self.store.index.change)  # for whoever has the next turn

    def _find(self, spool: Spool, wanted: dict[bytes, list[Piece]]) -> Iterator[Unpacked]:
        what = f"layer {self.layer.digest}"
        for member in read_tar(spool.read_at, spool.size, self.layer.descriptor.size, what):
            planned = Planned(member.entry, member.extents)
            for offset, size in DEFAULT(planned, spool.read_at):
                if not wanted:
                    return
                trio.from_thread.check_cancelled()
                data = read_content(planned, offset, size, spool.read_at)
                for piece in wanted.pop(hashlib.sha256(data).digest(), ()):
                    yield self._keep(piece, memoryview(data))
        for missing in wanted.values():
            error = InvalidInput(
                f"{what} does not hold what was found in it before", hint="Remove the store, and mount the image again"
            )
            yield from (Unpacked(piece, None, error, None) for piece in missing)

    def _keep(self, piece: Piece, data: memoryview) -> Unpacked:
        try:
            self.store.keep(piece.content, piece.number, data)
        except LocalError as store_error:
            return Unpacked(piece, data, None, store_error)
        return Unpacked(piece, data, None, None)


def _ignore(_: int) -> None:
    """No bar is shown."""


def _take(found: Iterator[Unpacked]) -> list[Unpacked]:
    """Blocking. The next results, about 8 MiB of them; none at the end."""
    some: list[Unpacked] = []
    weight = 0
    for result in found:
        some.append(result)
        weight += len(result.data or b"")
        if weight >= _BATCH:
            break
    return some
