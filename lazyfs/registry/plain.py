"""One small request over its own connection, for heads and chunks that httpx rejects and Go's clients accept.

The connections of the range reader can read such heads (odd_head.py) and bodies (chunked.py), and httpx cannot be made to. So
the request is repeated. This is the exception: a registry that sends such responses costs two requests per document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import trio

from lazyfs.errors import BadAnswer, SourceError, Unreachable
from lazyfs.registry.connection import Connection, connect
from lazyfs.registry.decoded import DecodedBody
from lazyfs.registry.head import Head
from lazyfs.registry.proxy import Proxy
from lazyfs.registry.retry import PROMPTLY
from lazyfs.registry.tls import system_context
from lazyfs.registry.url import Url

_PIECE = 64 << 10


async def exchange_plainly(
    method: str,
    url: Url,
    headers: Mapping[str, str],
    content: bytes,
    bound: Callable[[int], tuple[int, bool]],
    proxy: Proxy | None,
    refusal: SourceError,
) -> tuple[Head, bytes]:
    """The response's head and body. `bound` returns for a status how many bytes of the body are read (or one more), and whether
    it is wanted.

    Raises `refusal` if the head cannot be read this way either, Unreachable, BadAnswer. The caller sets one deadline for all
    steps. Cancelled: nothing stays open.
    """
    connection = await connect(url, proxy, system_context)
    try:
        try:
            head = await connection.exchange(_request(method, url, headers, content, connection))
        except BadAnswer as error:
            raise refusal from error
        if method == "HEAD" or head.status in {204, 304}:
            return head, b""
        most, is_wanted = bound(head.status)
        body = bytearray()
        with trio.move_on_after(math.inf if is_wanted else PROMPTLY):
            try:
                await _receive(connection, head, most, url, body)
            except SourceError:
                if is_wanted:
                    raise
        return head, bytes(body)
    finally:
        connection.close()


async def _receive(connection: Connection, head: Head, limit: int, url: Url, body: bytearray) -> None:
    """Read into `body`."""
    length = head.length
    stream = connection if length is not None else DecodedBody(connection, head)
    piece = memoryview(bytearray(_PIECE))
    while len(body) <= limit and (length is None or len(body) < length):
        wanted = _PIECE if length is None else min(_PIECE, length - len(body))
        got = await stream.receive_into(piece[:wanted])
        if not got:
            if length is not None:
                raise Unreachable(f"{url.authority} broke off in the middle of its answer")
            break
        body += piece[:got]


def _request(method: str, url: Url, headers: Mapping[str, str], content: bytes, connection: Connection) -> bytes:
    proxy = connection.forward_proxy
    fields = {"Host": url.authority, "User-Agent": "lazyfs", "Accept": "*/*", "Accept-Encoding": "identity", **headers}
    if content:
        fields["Content-Length"] = str(len(content))
    if proxy and proxy.authorization:
        fields["Proxy-Authorization"] = proxy.authorization
    lines = [f"{method} {url if proxy else url.target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content
