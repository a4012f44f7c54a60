"""Heads of responses, and where their bodies end."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadAnswer
from lazyfs.registry.head import parse_head


def test_a_plain_head() -> None:
    """Case-insensitive names, blanks around values, an empty reason."""
    head = parse_head(b"HTTP/1.1 206 \r\nContent-Length: 7\r\nX-A:  b c \t\r\nContent-Range: bytes 3-9/20")
    assert (head.status, head.length, head.content_range, head.keep_alive) == (206, 7, (3, 10, 20), True)
    assert head.headers["x-a"] == "b c"


def test_repeated_headers_are_joined() -> None:
    """Two WWW-Authenticate headers are one list. The same length twice is one length."""
    head = parse_head(b"HTTP/1.1 401 No\r\nA: 1\r\na: 2\r\nContent-Length: 3\r\nContent-Length: 3")
    assert head.headers["a"] == "1, 2"
    assert head.length == 3


def test_chunked_bodies_have_no_length() -> None:
    """RFC 9112 §6.1: Transfer-Encoding overrides Content-Length; mixing them up is how request smuggling begins."""
    assert parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3").length is None
    assert parse_head(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3").length == 3, "it knows no chunks"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 200 OK", True),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.1 200 OK\r\nConnection: close", False),
        (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close", False),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive", True),
    ],
)
def test_keep_alive(head: bytes, expected: bool) -> None:
    """Only if both sides agree."""
    assert parse_head(head).keep_alive is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 3-9/*", (3, 10, None)), ("Bytes 3-9/20", (3, 10, 20)), ("BYTES=3-9/20", (3, 10, 20)), ("bytes  3 - 9 / 20", (3, 10, 20)),
        ("bytes: 3-9/20", (3, 10, 20)), ("bytes\t3-9/ *", (3, 10, None)), ("bytes 3-9", (3, 10, None)), ("bytes 003-09/020", (3, 10, 20)),
    ],
)  # fmt: skip
def test_content_ranges_as_servers_write_them(value: str, expected: tuple[int, int, int | None]) -> None:
    """Other case, other blanks, no total: the meaning is clear, and the digest decides."""
    assert parse_head(f"HTTP/1.1 206 X\r\nContent-Range: {value}".encode()).content_range == expected


@pytest.mark.parametrize("value", ["bytes */20", "items 3-9/20", "bytes 3-/20", "3-9/20", "bytes 3-9/20, bytes 1-2/20", ""])
def test_other_content_ranges_are_none(value: str) -> None:
    """Only a single range of bytes counts."""
    assert parse_head(f"HTTP/1.1 206 X\r\nContent-Range: {value}".encode()).content_range is None


@pytest.mark.parametrize(
    "head",
    [
        b"", b"HTTP/1.1", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/2 200 OK", b"http/1.1 200 OK", b"HTTP/1.1  200 OK",
        b"HTTP/1.1 600 OK", b"HTTP/1.1 200 OK\r\nno colon", b"HTTP/1.1 200 OK\r\nA : b", b"HTTP/1.1 200 OK\r\nA: b\r\n folded",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d", b"HTTP/1.1 200 OK\r\nA: \0", b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1", b"HTTP/1.1 200 OK\r\nContent-Length: \xb2", b"HTTP/1.1 200 OK\r\nContent-Length:",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2", b"HTTP/1.1 200 OK\r\nLocation: /a\r\nLocation: /b",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 20,
    ],
)  # fmt: skip
def test_ambiguous_heads_are_refused(head: bytes) -> None:
    """Whatever two readers could read differently."""
    with pytest.raises(BadAnswer):
        parse_head(head)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    """Never another exception."""
    with contextlib.suppress(BadAnswer):
        assert 100 <= parse_head(data).status < 600
