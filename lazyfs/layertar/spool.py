"""A layer's tar on disk while it is converted, verified or unpacked. Decompressing and verifying take one pass.

The file never has a name, so nothing is left behind however the process ends. Reading the tar by offset keeps the rest
simple: entries are indexed, then ordered, then read in the new order.

The blob's first bytes decide how it is compressed, as in containerd: its media type may be wrong, and the diff ID is checked
in any case.

Decompression is bounded: a layer that grows beyond 1032 times its blob (deflate's own limit) and 1 GiB is refused, and
no step inflates more than a few MiB at once, so memory does not depend on what the blob claims. zstd has no such limit: a few kilobytes
can fill a window of 128 MiB, and a disk. So only bytes that have arrived count, and of several layers unpacked at once only one at a
time gets a larger window than layers usually need.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Literal, Self, cast

import zstandard
from isal import isal_zlib

from lazyfs.errors import DigestMismatch, InvalidInput
from lazyfs.format.bounds import ENTRY, Bounds
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Descriptor
from lazyfs.layertar.member_map import MemberMap
from lazyfs.store.unnamed import unnamed_file, write

if TYPE_CHECKING:
    from _typeshed import SupportsRead

__all__ = [
    "LARGEST_WINDOW",
    "PEEK",
    "SMALL_WINDOW",
    "LayerKind",
    "NeedsMore",
    "Pull",
    "Spool",
    "kind_of",
    "unnamed_file",
    "unpack",
    "write",
]

_PULL: Final = 1 << 20
_FEED: Final = 64 << 10
"""Bytes for one call of the inflater. After each gzip member it returns the rest as a copy, and an eStargz layer has
thousands of members."""
_INFLATE: Final = 4 << 20
_MAX_RATIO: Final = 1032
_MIN_LIMIT: Final = 1 << 30

PEEK: Final = 4
_GZIP: Final = b"\x1f\x8b\x08"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""After a byte from 0x50 to 0x5f: a skippable frame, with which zstd data may begin as well."""

LayerKind = Literal["gzip", "zstd", "tar"]

SMALL_WINDOW: Final = 8 << 20
"""Bytes of memory: enough for zstd at all levels up to 19, and for the defaults of Go's writers."""
LARGEST_WINDOW: Final = 128 << 20
"""The largest window that zstd accepts by default."""

Pull = Callable[[int], bytes | bytearray | memoryview]
"""Returns exactly the next `count` bytes of the blob."""


class NeedsMore(InvalidInput):
    """The layer could not be unpacked with a small window while it arrived. It may work with a large one, as the blob is complete."""


class Spool:
    """An uncompressed layer in an unnamed file. A context manager: leaving it frees the disk space."""

    def __init__(self, keep_blob: bool, folder: str | None = None) -> None:
        """The file is made in `folder`, a store's, or else in TMPDIR. Raises LocalError."""
        with ExitStack() as stack:
            self._file = stack.enter_context(unnamed_file(folder))
            self.blob: IO[bytes] | None = stack.enter_context(unnamed_file(folder)) if keep_blob else None
            self._stack = stack.pop_all()
        self._folder = folder
        self.size = 0
        self.blob_is_right = False
        """Whether the blob has the manifest's digest. Any other fault is then one of the image."""
        self.members = MemberMap()
        """If `blob` is kept: the blob offset of each gzip member, and the tar offset of its content."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def take_blob(self) -> IO[bytes]:
        """The blob, which stays open when the spool is closed."""
        assert self.blob is not None
        blob, self.blob = self.blob, None
        return os.fdopen(os.dup(blob.fileno()), "rb")

    def append(self, data: bytes) -> None:
        write(self._file, data, self._folder)
        self.size += len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        """The `size` bytes of the tar at `offset`; fewer only at its end."""
        return os.pread(self._file.fileno(), size, offset)


def unpack(
    spool: Spool,
    pull: Pull,
    layer: Descriptor,
    diff_id: Digest,
    progress: Callable[[int], None],
    *,
    careful: bool = False,
) -> None:
    """Fill `spool` with the tar in the blob that `pull` returns, and verify the digests of both blob and tar.

    `progress` gets the count of blob bytes of each step. Runs in a thread. With `careful`
    the window is at most SMALL_WINDOW and the tar is bounded by the bytes that have arrived. If that is too little, NeedsMore is
    raised once the blob is complete and its digest was right. Raises what `pull` raises, InvalidInput, DigestMismatch, LocalError.
    """
    what = f"layer {layer.digest}"
    blob = _Blob(pull, layer.size, spool.blob, progress)
    tar_hash = hashlib.sha256()
    limit = max(_MAX_RATIO * layer.size, _MIN_LIMIT)
    window = SMALL_WINDOW if careful else LARGEST_WINDOW
    kind = kind_of(blob.peek(PEEK))
    try:
        for data in _decompressed(blob, kind, spool, Bounds(layer.size, what), window):
            tar_hash.update(data)
            spool.append(data)
            if spool.size > limit:
                raise InvalidInput(f"{what} of {layer.size} bytes unpacks to more than {limit}: a decompression bomb")
            if careful and spool.size > max(_MAX_RATIO * blob.received, _MIN_LIMIT):
                received = blob.received
                blob.drain()
                blob.check(layer.digest, what)
                raise NeedsMore(f"{what}: its first {received} bytes unpack to more than {spool.size - len(data)}")
    except (isal_zlib.error, zstandard.ZstdError, EOFError) as error:  # type: ignore[misc]  # the stub gives it no class
        blob.drain()
        blob.check(layer.digest, what)
        broken = NeedsMore if kind == "zstd" and careful else InvalidInput
        raise broken(f"{what} is broken {kind}: {error}", hint="It was pushed broken: push the image again") from None
    blob.drain()
    blob.check(layer.digest, what)
    spool.blob_is_right = True
    if tar_hash.hexdigest() != diff_id[7:]:
        raise DigestMismatch(
            f"{what}, read as {kind}, unpacks to sha256:{tar_hash.hexdigest()}, and the config's diff ID is {diff_id}"
        )


def kind_of(start: bytes) -> LayerKind:
    """The compression of a blob that starts with these bytes: PEEK of them, or the whole blob."""
    if start.startswith(_GZIP):
        return "gzip"
    if start.startswith(_ZSTD) or (start[1:4] == _ZSTD_SKIPPABLE and start[0] & 0xF0 == 0x50):
        return "zstd"
    return "tar"


class _Blob:
    """The compressed bytes as a readable file: hashed, counted, and kept if they may be needed again."""

    def __init__(self, pull: Pull, size: int, copy: IO[bytes] | None, progress: Callable[[int], None]) -> None:
        self._pull = pull
        self._size = self._rest = size
        self._copy = copy
        self._progress = progress
        self._hash = hashlib.sha256()
        self._peeked = b""

    @property
    def received(self) -> int:
        """Bytes that have arrived so far."""
        return self._size - self._rest

    def peek(self, size: int) -> bytes:
        """The first `size` bytes, or as many as there are. The next read returns them again."""
        self._peeked = self.read(size)
        return self._peeked

    def read(self, size: int = -1) -> bytes:
        if self._peeked and size:
            data, self._peeked = self._peeked, b""
            if 0 <= size < len(data):
                data, self._peeked = data[:size], data[size:]
            return data
        wanted = min(self._rest, _PULL)
        if not wanted:
            return b""
        data = bytes(self._pull(wanted if size < 0 else min(size, wanted)))
        self._rest -= len(data)
        self._hash.update(data)
        if self._copy is not None:
            write(self._copy, data)
        self._progress(len(data))
        return data

    def drain(self) -> None:
        while self.read():
            pass

    def check(self, digest: Digest, what: str) -> None:
        if self._hash.hexdigest() != digest[7:]:
            raise DigestMismatch(f"{what} hashes to sha256:{self._hash.hexdigest()}")


def _decompressed(blob: _Blob, kind: LayerKind, spool: Spool, bounds: Bounds, window: int) -> Iterator[bytes]:
    if kind == "gzip":
        yield from _gunzip(blob, spool, bounds)
        return
    source: SupportsRead[bytes] = blob
    if kind == "zstd":
        file = cast(IO[bytes], blob)  # only its read is called
        source = zstandard.ZstdDecompressor(max_window_size=window).stream_reader(file, read_size=_PULL, read_across_frames=True)
    while data := source.read(_PULL):
        yield data


def _gunzip(blob: _Blob, spool: Spool, bounds: Bounds) -> Iterator[bytes]:
    """Inflate the gzip members in `blob` one by one. Each is charged as an entry (format/bounds.py), because it may be empty."""
    remember = spool.blob is not None
    consumed = 0
    inflated = 0
    stream = isal_zlib.decompressobj(31)
    fresh = True
    while pulled := blob.read():
        view = memoryview(pulled)
        for start in range(0, len(view), _FEED):
            data: bytes | memoryview = view[start : start + _FEED]
            while data:
                if fresh and remember:
                    spool.members.add(consumed, inflated)
                fresh = False
                out = stream.decompress(data, _INFLATE)
                left = stream.unused_data if stream.eof else stream.unconsumed_tail
                consumed += len(data) - len(left)
                inflated += len(out)
                data = left
                if out:
                    yield out
                if stream.eof:
                    bounds.describe(ENTRY)
                    stream = isal_zlib.decompressobj(31)
                    fresh = True
    if not consumed:
        raise EOFError("it is empty")
    while not fresh and not stream.eof:  # output that the inflater held back because of its limit
        out = stream.decompress(b"", _INFLATE)
        if not out and not stream.eof:
            raise EOFError("it ends inside a gzip member")
        yield out
