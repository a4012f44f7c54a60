"""eStargz as a dialect: a chain of gzip members, chunks that each begin a member, and a footer that says where the TOC's member is.

Source: containerd/stargz-snapshotter, docs/estargz.md and estargz/{types,gzip}.go. The TOC's member holds a tar entry; the digest
in the annotation is of that entry's JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Final

from isal import igzip_lib

from lazyfs.errors import InvalidInput, InvalidTar, InvalidToc, NotLazy, show
from lazyfs.format.dialect import Dialect, TocLocation
from lazyfs.format.entry import TOC_NAME
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.manifest import OCI_LAYER_GZIP
from lazyfs.format.member import MAX_RATIO, inflate_member
from lazyfs.format.tar_header import BLOCK, header_number

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""The annotation of a layer's descriptor with its TOC's digest. containerd turns it into a label."""
UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"
"""Another annotation that writers add: bytes of the layer's tar."""

_LARGEST_GUESS: Final = 4 << 20
_PIECE: Final = 1 << 20
_IN_ONE_GO: Final = 32 << 20
"""Bytes of JSON that may briefly be in memory twice."""


def _first_range(size: int, what: str) -> tuple[int, int]:
    """The end of the blob. TOCs measured 0.4 to 0.7 % of their blob. Too small a guess costs a round trip, too large a guess costs bytes:
    a layer of large files has a small TOC, and `size` is only a claim."""
    if size <= FOOTER_SIZE:
        raise NotLazy(f"{what} is an ordinary layer without an eStargz footer")
    return size - min(size, max(32 << 10, size // 100), _LARGEST_GUESS), size


def _locate(size: int, _start: int, data: bytes, what: str) -> TocLocation:
    offset = parse_footer(data[-FOOTER_SIZE:], size, what)
    return TocLocation(offset, size - FOOTER_SIZE, offset)


def _json_size(_place: TocLocation, begin: bytes, what: str) -> int:
    header = bytes(inflate_member(begin, BLOCK, f"the TOC of {what}")[:BLOCK])
    name = header[:100].rstrip(b"\0")
    if name != TOC_NAME:
        raise InvalidToc(f"{what}: where the TOC should be there is the tar entry {show(name)}")
    try:
        return header_number(header[124:136], what)
    except InvalidTar:
        raise InvalidToc(f"{what}: the TOC's tar header has a broken size") from None


def _document(pieces: Iterable[bytes], json_size: int, what: str) -> bytes | bytearray:
    coming = iter(pieces)
    first, second = next(coming), next(coming, None)
    if second is None and json_size <= _IN_ONE_GO:
        inflated = inflate_member(first, BLOCK + json_size, f"the TOC of {what}")
        return bytes(memoryview(inflated)[BLOCK : BLOCK + json_size])
    return _inflate(chain((first,), () if second is None else (second,), coming), json_size, what)


def _inflate(pieces: Iterable[bytes], json_size: int, what: str) -> bytearray:
    """The whole JSON, held in memory only once."""
    stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    skip = BLOCK
    json = bytearray()
    try:
        for piece in pieces:
            more = piece
            while len(json) < json_size and not stream.eof:
                part = stream.decompress(more, min(skip or _PIECE, skip or json_size - len(json)))
                more = b""
                if skip:
                    skip -= len(part)
                else:
                    json += part
                if not part:
                    break  # it needs the next piece
    except igzip_lib.error as error:  # type: ignore[misc]  # the stub gives it no class
        raise InvalidInput(f"the TOC of {what}: the gzip member is broken ({error})") from None
    if len(json) < json_size:
        raise InvalidInput(f"the TOC of {what}: the gzip member ends after {len(json)} of {json_size} bytes")
    return json


def _json(document: bytes | bytearray, _what: str) -> bytes | bytearray:
    return document


ESTARGZ: Final = Dialect(
    name="eStargz",
    annotations=(TOC_DIGEST,),
    media_type=OCI_LAYER_GZIP,
    ratio=MAX_RATIO,
    first_range=_first_range,
    locate=_locate,
    json_size=_json_size,
    document=_document,
    json=_json,
    decode=inflate_member,
)
