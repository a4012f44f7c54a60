"""Content-Encoding of documents: inflated if something is compressed, ignored if not."""

from __future__ import annotations

import gzip
import zlib

import pytest

from lazyfs.errors import BadAnswer, SourceError, Unreachable
from lazyfs.registry.encoding import inflated

DATA = b'{"schemaVersion": 2}' * 20
GZIP = gzip.compress(DATA)


@pytest.mark.parametrize(
    "encoding", ["", "identity", "Identity", "aws-chunked", "utf-8", "gzip", "GZIP", "deflate", "br", "a,,b"]
)
async def test_what_is_not_compressed_stays_as_it_is(encoding: str) -> None:
    """Whatever the header says."""
    assert await inflated(DATA, encoding, len(DATA), "host") == DATA


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", GZIP),
        ("X-GZip", GZIP),
        ("aws-chunked, gzip", GZIP),
        ("gzip, identity", GZIP),
        ("gzip, gzip", gzip.compress(GZIP)),
        ("gzip", gzip.compress(DATA[:7]) + gzip.compress(DATA[7:]) + bytes(8)),
        ("deflate", zlib.compress(DATA)),
        ("Deflate", zlib.compress(DATA, 1)),
    ],
)
async def test_what_is_compressed_is_inflated(encoding: str, body: bytes) -> None:
    """One or several codings, one or several members, up to exactly the limit."""
    assert await inflated(body, encoding, len(DATA), "host") == DATA


@pytest.mark.parametrize(
    ("encoding", "body", "kind", "message"),
    [
        ("gzip", GZIP, BadAnswer, "inflates to over 399 bytes"),
        ("gzip", gzip.compress(bytes(50_000_000), 1), BadAnswer, "inflates to over 399 bytes"),
        ("gzip", gzip.compress(b"") * 1000, BadAnswer, "gzip members"),
        ("gzip", gzip.compress(DATA[:100])[:-8] + bytes(8), BadAnswer, "damaged"),
        ("gzip", gzip.compress(DATA[:100])[:-4], Unreachable, "ends early"),
        ("deflate", zlib.compress(DATA[:100])[:-1], Unreachable, "ends early"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bombs_and_damage(encoding: str, body: bytes, kind: type[SourceError], message: str) -> None:
    """Bounded before it is spent: the bytes of one body in total, and its members."""
    assert len(DATA) == 400
    with pytest.raises(kind, match=message):
        await inflated(body, encoding, 399, "host")
