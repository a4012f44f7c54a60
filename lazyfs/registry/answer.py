"""What is asked of a blob, and an answer to it, checked to be one."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from lazyfs.errors import BadAnswer, RangeIgnored
from lazyfs.format.digest import Digest
from lazyfs.registry.connection import Connection
from lazyfs.registry.decoded import Decoded
from lazyfs.registry.head import Head
from lazyfs.registry.tokens import Scope
from lazyfs.registry.url import Url

MAX_SKIP: Final = 1 << 20
"""Bytes of a whole blob that are read and dropped to get to a range that the server did not grant."""


class Asked(NamedTuple):
    """Bytes `[start, end)` of a blob of `size` bytes."""

    what: str
    """The blob, as errors name it."""
    url: Url
    """Where the registry has it."""
    scope: Scope
    digest: Digest
    size: int
    start: int
    end: int
    first: int
    """Where the range began when it was asked for the first time; `start` is behind that where the rest is asked for."""
    deadline: float = math.inf
    """When its reader gives up: a host's own pause is waited for where it ends before."""


class Answer(NamedTuple):
    """A 206 or 200 whose body is next on its connection."""

    url: Url
    connection: Connection
    stream: Connection | Decoded
    """Where the body is read: the connection, unless the body has no length."""
    start: int
    """Offset in the blob of the body's first byte; in a whole blob before what was asked for."""
    end: int
    """Where the body ends; in a range it may be before what was asked for."""
    keep_alive: bool


def accept(asked: Asked, url: Url, connection: Connection, head: Head) -> Answer:
    """The answer that `head`, a 206 or a 200, begins. Encodings of the content are not looked at: lengths and digests decide.

    Raises BadAnswer for another range and another blob, RangeIgnored for a whole blob where the range begins too far in.
    """
    length = head.length
    whole = head.status != 206
    if whole:
        start, end = 0, asked.size
        if length not in {None, asked.size}:
            raise _bad(asked, url, f"a whole blob of {length} bytes")
        if asked.first > MAX_SKIP:
            raise RangeIgnored(f"{asked.what}: {url.authority} answers a request for {_wanted(asked)} with the whole blob")
    else:
        if head.headers.get("content-type", "").lower().startswith("multipart/"):
            raise _bad(asked, url, "several ranges")
        found = head.content_range
        if found is None and length in {None, asked.end - asked.start}:
            # It does not say where it lies, or not so that it can be read. If it is not what was asked for, no digest matches.
            found = asked.start, asked.end, None
        start, end, total = found or (-1, -1, None)
        if start != asked.start or not start < end <= asked.end or total not in {None, asked.size}:
            raise _bad(asked, url, repr(head.headers.get("content-range", "no range")[:80]))
        if length is not None:
            if not 0 < length <= end - start:
                raise _bad(asked, url, f"a body of {length} bytes")
            end = start + length  # a shorter one is a beginning: the rest is asked for
    if length is None:
        return Answer(url, connection, Decoded(connection, head), start, end, head.keep_alive)
    return Answer(url, connection, connection, start, end, head.keep_alive)


def _bad(asked: Asked, url: Url, answer: str) -> BadAnswer:
    return BadAnswer(f"{asked.what}: {url.authority} answers a request for {_wanted(asked)} with {answer}")


def _wanted(asked: Asked) -> str:
    return f"bytes {asked.start} to {asked.end} of {asked.size}"
