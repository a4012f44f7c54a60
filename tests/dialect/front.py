"""The dialect `front`: a zstd blob that begins with its TOC.

    skippable frame     "FRONTTOC", LE64 bytes of the compressed TOC, LE64 bytes of its JSON, one zstd frame of JSON, zeros
    zstd frames         the layer's tar, one for each chunk and one for what lies between them

The annotation has the sha256 digest of the compressed TOC, as zstd:chunked has it. A `tar` and a `zstd` that know nothing of it read the blob.
"""

from __future__ import annotations

from collections.abc import Iterable

import zstandard

from lazyfs.errors import InvalidInput, InvalidToc, NotLazy
from lazyfs.format.bounds import DESCRIPTION, DESCRIPTION_RATIO
from lazyfs.format.dialect import Buffer, Dialect, TocLocation
from lazyfs.format.manifest import OCI_LAYER_ZSTD

MAGIC = b"FRONTTOC"
SKIPPABLE = b"\x50\x2a\x4d\x18"
HEADER = 32
"""Bytes before the compressed TOC: the skippable frame's header, the magic, two numbers."""
ANNOTATION = "containerd.io/snapshot/front/toc.digest"
_GUESS = 4 << 10


def _first_range(size: int, what: str) -> tuple[int, int]:
    if size < HEADER:
        raise NotLazy(f"{what} is too small to have its TOC in front")
    return 0, min(size, _GUESS)


def _locate(size: int, start: int, data: bytes, what: str) -> TocLocation:
    assert start == 0
    if data[:4] != SKIPPABLE or data[8:16] != MAGIC:
        raise NotLazy(f"{what} has no TOC in front")
    packed = int.from_bytes(data[16:24], "little")
    if not 0 < packed <= size - HEADER:
        raise InvalidToc(f"{what}: its TOC has {packed} bytes, and the blob {size}")
    return TocLocation(HEADER, HEADER + packed, size, int.from_bytes(data[24:32], "little"))


def _json_size(location: TocLocation, _begin: bytes, _what: str) -> int:
    return location.json_size


def _document(pieces: Iterable[bytes], _json_size: int, _what: str) -> bytes:
    return b"".join(pieces)


def _json(document: bytes | bytearray, what: str) -> bytes:
    limit = DESCRIPTION + DESCRIPTION_RATIO * len(document)
    return _read(document, limit, f"the TOC of {what}")


def _decode(data: Buffer, length: int, what: str) -> bytes:
    plain = _read(data, length, what)
    if len(plain) < length:
        raise InvalidInput(f"{what}: the frame ends after {len(plain)} of {length} bytes")
    return plain


def _read(data: Buffer, most: int, what: str) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(bytes(data)) as stream:
            return stream.read(most)
    except zstandard.ZstdError as error:
        raise InvalidInput(f"{what}: the frame is broken ({error})") from None


FRONT = Dialect(
    name="front",
    annotations=(ANNOTATION,),
    media_type=OCI_LAYER_ZSTD,
    ratio=1032,
    first_range=_first_range,
    locate=_locate,
    json_size=_json_size,
    document=_document,
    json=_json,
    decode=_decode,
)
