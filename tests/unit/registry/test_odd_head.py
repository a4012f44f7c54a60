"""Two parsers of one head: lazyfs's for the usual, h11's for the rest. They must agree about where the body ends."""

from __future__ import annotations

import contextlib
import time

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadAnswer
from lazyfs.registry.head import END, MAX_HEAD, Head, parse_head
from lazyfs.registry.odd_head import end_of_head, read_odd_head, response_parser

TAIL = b"5\r\nhello\r\n0\r\n\r\n"
"""A chunked body, or a body of 15 bytes."""

LINES = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r\n ", b"\n\t", b"\r", b""])
STATUSES = st.sampled_from(
    [b"HTTP/1.1 206 X", b"HTTP/1.1 200", b"HTTP/1.0 206 X", b"HTTP/1.1  206 X", b"HTTP/1.1 102 X", b"HTTP/1.1 204 X"]
)
FIELDS = st.sampled_from(
    [
        b"Content-Length: 3", b"content-length:3", b"Content-Length: 4", b"Content-Length: 0003", b"Content-Length : 3", b"Content-Length: 3, 3",
        b"Content-Length:", b"Content-Length: +3", b"Content-Length: \xb3", b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED ",
        b"Transfer-Encoding: identity", b"Transfer-Encoding:", b"Transfer-Encoding : chunked", b"X: y", b"X Y: z", b": z", b"X", b"X: \x0b",
        b"Connection: close", b"Content-Range: bytes 0-2/9", b"Location: /a", b"X: \0",
    ]
)  # fmt: skip
HEADS = st.builds(
    lambda status, parts: status + b"".join(line + field for line, field in parts),
    STATUSES,
    st.lists(st.tuples(LINES, FIELDS), max_size=6),
)


def body_by_h11(data: bytes) -> tuple[int, bytes] | None:
    """Status and body according to h11, of a response that ends with its connection; None if it rejects it."""
    reader = response_parser()
    status, body = 0, b""
    try:
        reader.receive_data(data)
        reader.receive_data(b"")
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None
    return status, body


def body_by_us(head: Head) -> bytes:
    """The part of TAIL that is the body."""
    if head.status == 204:
        return b""
    if head.length is not None:
        return TAIL[: head.length]
    return b"hello" if "transfer-encoding" in head.headers else TAIL


@given(HEADS)
def test_the_fast_parser_and_h11_agree(data: bytes) -> None:
    """If both accept a head, status and body are the same. For HTTP/1.0, lazyfs follows Go, which has no chunks there."""
    with contextlib.suppress(BadAnswer):
        head = parse_head(data)
        other = body_by_h11(data + END + TAIL)
        if head.status >= 200 and other is not None and not (data.startswith(b"HTTP/1.0") and b"chunked" in data.lower()):
            assert other == (head.status, body_by_us(head))


@given(HEADS)
def test_both_readings_agree(data: bytes) -> None:
    """What the fast parser accepts, the slow one reads in the same way: so it does not matter which one is used."""
    with contextlib.suppress(BadAnswer):
        head = parse_head(data)
        odd = read_odd_head(data + END, BadAnswer("no"))
        assert (odd.status, odd.length) == (head.status, head.length)
        assert odd.headers.get("transfer-encoding", "") == head.headers.get("transfer-encoding", "").lower()
        assert not odd.keep_alive


@given(HEADS | st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"HTTP/1.1 200 OK\n" + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Never another exception than the given one."""
    with contextlib.suppress(BadAnswer):
        head = read_odd_head(data + b"\n\n", BadAnswer("the fast one"))
        assert head.status >= 100
        length = head.headers.get("content-length", "0")
        assert length.isascii() and length.isdigit()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"a\r\n\r", 0),
        (b"a\r\n\r\nb", 5),
        (b"a\n\nb\r\n\r\n", 3),
        (b"a\n\r\nb", 4),
        (b"a\r\n\nb", 4),
        (b"a\n \n", 0),
        (b"\n\n", 2),
    ],
)
def test_where_a_head_ends(data: bytes, expected: int) -> None:
    """At the first empty line, with any kind of line ends."""
    assert end_of_head(data) == expected


def test_the_first_of_several_places_counts() -> None:
    """As in Go. Lists are joined."""
    head = read_odd_head(b"HTTP/1.1 307 X\nLocation: /a\nA: 1\nlocation: /b\na: 2\n\n", BadAnswer("no"))
    assert head.headers == {"location": "/a", "a": "1, 2"}


PIECES = [b"\n ", b"\r\n\t", b"A: b\n", b" : b\n", b"A B:\n", b"Content-Length: 0\n", b"0", b"\r", b":"]


def read_hostile_head(piece: bytes) -> None:
    """As long as heads may be."""
    data = b"HTTP/1.1 206 X\n" + piece * (MAX_HEAD // len(piece)) + b"\n\n"
    with contextlib.suppress(BadAnswer):
        read_odd_head(data, BadAnswer("no"))


@pytest.mark.parametrize("piece", PIECES)
def test_a_hostile_head_is_read_or_refused(piece: bytes) -> None:
    """No other exception."""
    read_hostile_head(piece)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("piece", PIECES)
def test_a_hostile_head_costs_little(piece: bytes) -> None:
    """Nothing here is quadratic. CPU time, on an otherwise idle machine."""
    began = time.process_time()
    read_hostile_head(piece)
    assert time.process_time() - began < 2
