"""Bodies of documents: cut, and framed as only Go reads them."""

from __future__ import annotations

import pytest
import trio.testing

from lazyfs.errors import Unreachable
from tests.unit.registry.scripted import Reply, reply
from tests.unit.registry.test_client import HEAD, asking, get

CUT = {
    "before the head": b"",
    "in the head": HEAD + b"Content-Le",
    "in the body": HEAD + b"Content-Length: 5\r\n\r\nhal",
    "in a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhal",
    "between chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n",
}


@pytest.mark.parametrize("answer", CUT.values(), ids=CUT)
async def test_a_cut_answer_is_asked_for_again(answer: bytes, autojump_clock: trio.testing.MockClock) -> None:
    """Wherever it breaks off. If it does each time, the connection is to blame, not the grammar."""
    asked = 2 if b"chunked" in answer else 1  # by httpx, which cannot say what is wrong with chunks, and by plain.py
    async with asking([*[Reply(answer, "close")] * 2 * asked, reply(200, b"whole")]) as (server, client):
        assert await get(client) == b"whole"
        server.script = [Reply(answer, "close")] * 5 * asked
        with pytest.raises(Unreachable):
            await get(client)
        assert not server.script


async def test_a_document_in_chunks_whose_lines_end_in_a_bare_lf() -> None:
    """httpx reports that it broke off. It is requested once more, and read as Go reads it."""
    odd = reply(200, b"5\nhello\r\n0\n\r\n", content_length="", transfer_encoding="chunked")
    async with asking([odd, odd]) as (server, client):
        assert await get(client) == b"hello"
    assert len(server.requests) == 2
