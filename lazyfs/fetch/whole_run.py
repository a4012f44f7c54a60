"""Fetches an eager layer again, because something of it is not in the store any more: evicted, removed or damaged.

It is a single tar, and the position of a file in it is unknown. So it is fetched as it was the first time, verified as a whole,
and its chunks are recognised by their hashes.
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
"""Bytes collected before they are passed to readers."""


class WholeRun(NamedTuple):
    """On the event loop, `on_piece` is called for each piece, `on_bytes` for received bytes, and `on_tar` once the tar is
    complete."""

    store: Store
    source: ImageSource
    layer: Layer
    on_piece: Callable[[Unpacked], None]
    on_bytes: Callable[[int], None]
    on_tar: Callable[[], None]

    def missing(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Those of `pieces` that are in no file of the store. Blocking."""
        return to_fetch(self.store, pieces)

    async def fetch(
        self, wanted_now: Callable[[], Sequence[Piece]], pieces: Sequence[Piece] | None, expect: Callable[[set[bytes]], None]
    ) -> None:
        """Fetch those of `pieces` (None: of `wanted_now()`) that are missing. `on_piece` is not called for the others.

        If nothing of `wanted_now()` is missing once the layer lock is held, nothing is fetched. `expect` is called with the digests
        that `on_piece` will get. Raises SourceError, InvalidInput (the blob has changed), LocalError. Cancelled: what was
        passed to `on_piece` is kept.
        """
        layer = self.layer
        assert layer.whole is not None
        async with lock_layers(self.store, [layer.digest]) as locks:
            missing = await trio.to_thread.run_sync(self.missing, wanted_now())
            if not missing:
                expect(set())
                return

            def arrived(count: int) -> None:
                trio.from_thread.run_sync(self.on_bytes, count)

            keep = locks.holds(layer.digest)
            tar = fetch_tar(self.source, layer.descriptor, layer.whole, self.store, _ignore, received=arrived, keep=keep)
            async with tar as spool:
                self.on_tar()
                # Only after the download: if the source is unreachable, each failing read would look up all of a large layer.
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
            with suppress(LocalError):  # for what is not kept, `on_piece` got the error
                await trio.to_thread.run_sync(self.store.index.change)  # for the next holder of the layer lock

    def _find(self, spool: Spool, wanted: dict[bytes, list[Piece]]) -> Iterator[Unpacked]:
        what = f"layer {self.layer.digest} of {self.source.name}"
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
    """No progress bar."""


def _take(found: Iterator[Unpacked]) -> list[Unpacked]:
    """The next results, about 8 MiB; empty at the end. Blocking."""
    some: list[Unpacked] = []
    weight = 0
    for result in found:
        some.append(result)
        weight += len(result.data or b"")
        if weight >= _BATCH:
            break
    return some
