"""Writes one eStargz layer into an unnamed file.

Threads compress batches of members; one thread writes them in order, so that the output does not depend on the number of
threads, and hashes in order the blob, the uncompressed tar (the diff ID), and files of several chunks.
The bytes in progress are bounded, so memory does not depend on the size of files or the number of cores.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import IO, Final, NamedTuple

import msgspec

from converter.members import Packed, Piece, batches, compress, members
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.entry import TOC_NAME, Chunk, Entry
from lazyfs.format.footer import build_footer
from lazyfs.format.member import compress_member
from lazyfs.format.tar import ReadAt
from lazyfs.format.tar_header import END_OF_TAR, header_bytes, padding
from lazyfs.format.toc_json import encode_toc
from lazyfs.layertar.cut import Cut
from lazyfs.layertar.plan import Planned
from lazyfs.layertar.spool import unnamed_file, write

_UNDER_WAY: Final = 48 << 20


class Style(NamedTuple):
    """What a user can choose about a layer's bytes."""

    cut: Cut
    level: int


class NewLayer(NamedTuple):
    """A layer of the new image."""

    digest: Digest
    size: int
    diff_id: Digest
    toc_digest: Digest
    tar_size: int
    entries: int
    chunks: int
    kept: bool
    """Whether it is the source's blob."""


def write_layer(
    plan: Sequence[Planned],
    read_at: ReadAt,
    style: Style,
    threads: ThreadPoolExecutor,
    workers: int,
    progress: Callable[[int], None],
) -> tuple[IO[bytes], NewLayer]:
    """Write the layer described by `plan`, reading its bytes with `read_at`, into an unnamed file that the caller closes.

    `progress` gets the count of tar bytes of each step; an exception of it ends the writing. Runs in a thread that is not one
    of `threads`, of which it keeps `workers` busy. Raises LocalError.
    """
    file = unnamed_file()
    try:
        writing = _Writing(file, plan, style, progress)
        under_way: deque[tuple[int, Future[Packed]]] = deque()
        weight = 0
        try:
            for batch in batches(members(plan, style.cut, read_at)):
                weighs = sum(piece.size + len(piece.tail) for piece in batch)
                while under_way and (len(under_way) > 2 * workers or weight + weighs > _UNDER_WAY):
                    done, packed = under_way.popleft()
                    writing.take(packed.result())
                    weight -= done
                under_way.append((weighs, threads.submit(compress, batch, plan, read_at, style.level)))
                weight += weighs
            while under_way:
                writing.take(under_way.popleft()[1].result())
        finally:
            for _, packed in under_way:
                packed.cancel()
            wait(packed for _, packed in under_way)
        return file, writing.finish()
    except BaseException:
        file.close()
        raise


class _Writing:
    """The steps that have to be done in order."""

    def __init__(self, file: IO[bytes], plan: Sequence[Planned], style: Style, progress: Callable[[int], None]) -> None:
        self._file = file
        self._plan = plan
        self._style = style
        self._progress = progress
        self._blob_hash = hashlib.sha256()
        self._tar_hash = hashlib.sha256()
        self._blob_size = 0
        self._tar_size = 0
        self._chunks: dict[int, list[Chunk]] = {}
        self._large: tuple[int, hashlib._Hash] | None = None
        self._digests: dict[bytes, bytes] = {}

    def take(self, packed: Packed) -> None:
        offset = self._blob_size
        at = 0
        for piece, size, digest in zip(packed.pieces, packed.sizes, packed.digests, strict=True):
            if piece.size:
                chunk = Chunk(piece.file_offset, piece.size, digest, offset, 0, offset + size)
                self._chunks.setdefault(piece.entry, []).append(chunk)
                self._digest_large(piece, memoryview(packed.tar)[at : at + piece.size])
            offset += size
            at += piece.size + len(piece.tail)
        self._append(packed.tar, packed.blob)
        self._progress(len(packed.tar))

    def finish(self) -> NewLayer:
        """Write the TOC and the footer."""
        entries = [
            msgspec.structs.replace(planned.entry, chunks=tuple(self._chunks[number]))
            if number in self._chunks
            else planned.entry
            for number, planned in enumerate(self._plan)
        ]
        toc = encode_toc(entries, self._digests)
        header = header_bytes(Entry(TOC_NAME, "reg", 0, size=len(toc)))
        tar = b"".join((header, toc, bytes(padding(len(toc))), END_OF_TAR))
        footer = build_footer(self._blob_size)
        self._append(tar, compress_member(tar, self._style.level))
        self._append(b"", footer)
        return NewLayer(
            digest=Digest("sha256:" + self._blob_hash.hexdigest()),
            size=self._blob_size,
            diff_id=Digest("sha256:" + self._tar_hash.hexdigest()),
            toc_digest=digest_of(toc),
            tar_size=self._tar_size,
            entries=len(entries),
            chunks=sum(len(chunks) for chunks in self._chunks.values()),
            kept=False,
        )

    def _digest_large(self, piece: Piece, content: memoryview) -> None:
        """Hash files of several chunks, which come one after the other. A file of one chunk has its chunk's digest."""
        entry = self._plan[piece.entry].entry
        if entry.size == piece.size:
            return
        if self._large is None or self._large[0] != piece.entry:
            self._large = (piece.entry, hashlib.sha256())
        self._large[1].update(content)
        if piece.file_offset + piece.size == entry.size:
            self._digests[entry.name] = self._large[1].digest()

    def _append(self, tar: bytes, blob: bytes) -> None:
        self._tar_hash.update(tar)
        self._blob_hash.update(blob)
        write(self._file, blob)
        self._tar_size += len(tar)
        self._blob_size += len(blob)
