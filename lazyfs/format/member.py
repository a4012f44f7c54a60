"""Gzip members, the parts of an eStargz blob.

Writing uses libdeflate in one shot: equal input gives equal output on any machine and with any number of workers (which is
why pyproject pins its exact version).

Reading must not trust the sender. A TOC knows how long a *chunk* is; the member around it runs on into the padding and
headers that follow the chunk, and a hostile one may inflate to gigabytes. libdeflate is the fastest, but needs to
know the size of the whole member: the member's own ISIZE says it and is believed up to a bound. All else goes through
isal's stream, which stops where the chunk stops.
"""

from __future__ import annotations

from typing import Final

import deflate
from isal import igzip_lib

from lazyfs.errors import InvalidInput

DEFAULT_LEVEL: Final = 6
MAX_RATIO: Final = 1032
"""Deflate's own limit: 258 bytes out of two bits."""
_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_SLACK: Final = 1 << 20
"""How far a member may run on after its last chunk and still be inflated in one piece (at most 123 kB measured)."""


def compress_member(data: bytes | bytearray | memoryview, level: int = DEFAULT_LEVEL) -> bytes:
    """Compress `data` to one gzip member: no name, no time, OS 255, as Go's writer does."""
    body = deflate.deflate_compress(data, level)
    trailer = deflate.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return b"".join((_HEADER, body, trailer))


def inflate_member(member: bytes | bytearray | memoryview, length: int, what: str) -> bytes | bytearray:
    """The first `length` uncompressed bytes (or a little more) of the gzip member at the start of `member`.

    Inflates and holds at most `length` + 1 MiB, whatever the member claims. Raises InvalidInput, naming `what`, for anything
    that is not gzip or ends early, and at once for a length that no such member can have.
    """
    if not 0 <= length <= MAX_RATIO * len(member):
        raise InvalidInput(f"{what}: the gzip member of {len(member)} bytes cannot inflate to {length} bytes")
    room = int.from_bytes(member[-4:], "little")
    if length <= room <= length + _SLACK:
        try:
            inflated = deflate.gzip_decompress(member, room)
        except (deflate.DeflateError, ValueError):
            pass  # not one whole member, or not gzip: the stream below finds out which
        else:
            if len(inflated) >= length:
                return inflated
    stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    try:
        inflated_part = stream.decompress(member, length)
    except igzip_lib.error as error:  # type: ignore[misc]  # the stub gives it no class
        raise InvalidInput(f"{what}: the gzip member is broken ({error})") from None
    if len(inflated_part) < length:
        raise InvalidInput(f"{what}: the gzip member ends after {len(inflated_part)} of {length} bytes")
    return bytes(inflated_part)
