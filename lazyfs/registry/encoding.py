"""Content-Encoding of documents and tokens. lazyfs asks for none (`Accept-Encoding: identity`).

Some servers compress all the same. Others send the header without encoding anything (`aws-chunked`, `utf-8`, an empty value),
so the name of a coding proves nothing: what begins like gzip or zlib is inflated, and everything else is left as it is. Neither
can be mistaken for JSON. Blobs do not pass through here: their digests are over the bytes that a registry stores.
"""

from __future__ import annotations

import zlib
from typing import Final

import trio

from lazyfs.errors import BadAnswer, Unreachable

_GZIP: Final = frozenset({"gzip", "x-gzip"})
_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_CODINGS: Final = 4
_MAX_MEMBERS: Final = 64
"""Members in one gzip body: each costs a copy of all that follows it."""


async def inflated(body: bytes, encoding: str, limit: int, who: str) -> bytes:
    """`body` with the codings of the header's value `encoding` undone, at most `limit` bytes.

    Raises BadAnswer if it inflates to more, or is damaged; Unreachable if it ends early. `who` sent it. Cancelled: leaves
    nothing behind.
    """
    codings = [coding.strip().lower() for coding in encoding.split(",")][-_MAX_CODINGS:]
    for coding in reversed(codings):
        if (coding in _GZIP and body[:2] == _GZIP_MAGIC) or (coding == "deflate" and _is_zlib(body)):
            body = await trio.to_thread.run_sync(_inflate, body, coding in _GZIP, limit, who)
    return body


def _is_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0


def _inflate(body: bytes, is_gzip: bool, limit: int, who: str) -> bytes:
    """Blocking."""
    found = bytearray()
    for _ in range(_MAX_MEMBERS):
        inflater = zlib.decompressobj(zlib.MAX_WBITS | (16 if is_gzip else 0))
        try:
            # One byte over the limit is enough to know.
            found += inflater.decompress(body, limit + 1 - len(found))
        except zlib.error as error:
            raise BadAnswer(f"{who} sends an answer whose compression is damaged") from error
        if len(found) > limit:
            raise BadAnswer(f"{who} sends an answer that inflates to over {limit} bytes, where no more are allowed")
        if not inflater.eof:
            raise Unreachable(f"{who} sends a compressed answer that ends early")
        # gzip may have several members. What follows the last one is padding, as for gzip itself.
        body = inflater.unused_data
        if not is_gzip or body[:2] != _GZIP_MAGIC:
            return bytes(found)
    raise BadAnswer(f"{who} sends an answer of over {_MAX_MEMBERS} gzip members")
