"""A request for a range of a blob, and the check that a response matches it."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from lazyfs.errors import BadAnswer, RangeIgnored
from lazyfs.format.digest import Digest
from lazyfs.registry.connection import Connection
from lazyfs.registry.decoded import DecodedBody
from lazyfs.registry.head import Head
from lazyfs.registry.tokens import Scope
from lazyfs.registry.url import Url

MAX_SKIP: Final = 1 << 20
"""Bytes of a whole blob that are read and dropped to get to a range that the server did not grant."""


class RangeRequest(NamedTuple):
    """Bytes `[start, end)` of a blob of `size` bytes."""

    what: str
    """Name of the blob for errors."""
    url: Url
    """The blob's URL at the registry."""
    scope: Scope
    """What a token for it has to allow; empty where none is to be sent."""
    digest: Digest
    size: int
    start: int
    end: int
    first: int
    """Where the range began in the first request; `start` is behind that in a request for the rest."""
    deadline: float = math.inf
    """When the reader gives up. A pause that a host asks for is waited for if it ends before."""


class RangeResponse(NamedTuple):
    """A 206 or 200 response whose body comes next on its connection."""

    url: Url
    connection: Connection
    stream: Connection | DecodedBody
    """Where to read the body: the connection, unless the body has no length."""
    start: int
    """Blob offset of the body's first byte; in a whole blob, before the requested range."""
    end: int
    """Blob offset of the body's end; may be before the end of the requested range."""
    keep_alive: bool


def accept(request: RangeRequest, url: Url, connection: Connection, head: Head) -> RangeResponse:
    """The response that begins with `head`, a 206 or 200. Content encodings are ignored: lengths and digests decide.

    Raises BadAnswer for another range or another blob, RangeIgnored for a whole blob if the range begins too far in.
    """
    length = head.length
    whole = head.status != 206
    if whole:
        start, end = 0, request.size
        if length not in {None, request.size}:
            raise _bad(request, url, f"a whole blob of {length} bytes")
        if request.first > MAX_SKIP:
            raise RangeIgnored(f"{request.what}: {url.authority} answers a request for {_wanted(request)} with the whole blob")
    else:
        if head.headers.get("content-type", "").lower().startswith("multipart/"):
            raise _bad(request, url, "several ranges")
        found = head.content_range
        if found is None and length in {None, request.end - request.start}:
            # It does not say which range it is, or not legibly. If it is the wrong one, no digest will match.
            found = request.start, request.end, None
        start, end, total = found or (-1, -1, None)
        if start != request.start or not start < end <= request.end or total not in {None, request.size}:
            raise _bad(request, url, repr(head.headers.get("content-range", "no range")[:80]))
        if length is not None:
            if not 0 < length <= end - start:
                raise _bad(request, url, f"a body of {length} bytes")
            end = start + length  # a shorter one is a beginning: the rest is requested later
    if length is None:
        return RangeResponse(url, connection, DecodedBody(connection, head), start, end, head.keep_alive)
    return RangeResponse(url, connection, connection, start, end, head.keep_alive)


def _bad(request: RangeRequest, url: Url, response: str) -> BadAnswer:
    return BadAnswer(f"{request.what}: {url.authority} answers a request for {_wanted(request)} with {response}")


def _wanted(request: RangeRequest) -> str:
    return f"bytes {request.start} to {request.end} of {request.size}"
