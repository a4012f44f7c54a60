"""A scripted HTTP server on loopback, which sends exactly the bytes of a test."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from mmap import mmap
from typing import NamedTuple

import trio

from lazyfs.errors import LazyfsError

DRIP = 15.0
"""Seconds between two bytes."""


class Request(NamedTuple):
    """One received request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """The bytes to send. After that, `keep` the connection, `close` it, or stay in `silence` until the client closes it. Or
    `drip` the end."""

    data: bytes
    then: str = "keep"
    drops: int = 4
    """How many bytes at the end drip."""
    pause: float = DRIP
    """Seconds before each of them."""
    drop: int = 1
    """Bytes at a time."""


Answer = Reply | bytes
Script = list[Answer] | Callable[[Request], Answer]


class Server:
    """Its answers come from `script`: a list, with one answer per request, or a function."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self.late = 0.0
        """Seconds before an answer."""
        self.silences: list[trio.CancelScope] = []
        """Scopes of the silent connections. Cancelling one closes its connection."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, request: Request) -> Reply:
        """The next answer of the script."""
        if callable(self.script):
            found = self.script(request)
        else:
            assert self.script, f"nobody expected {request.method} {request.target}"
            found = self.script.pop(0)
        return found if isinstance(found, Reply) else Reply(found)

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection."""
        self.connections += 1
        self.open += 1
        try:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                method, target, _ = first.split(" ")
                while len(data) < int(headers.get("content-length", "0")):
                    data += await stream.receive_some(65536)
                length = int(headers.get("content-length", "0"))
                request = Request(method, target, headers, data[:length])
                data = data[length:]
                self.requests.append(request)
                if method == "CONNECT" and await self.tunnel(stream, request):
                    return
                reply = self.answer(request)
                if self.late:
                    await trio.sleep(self.late)
                if reply.then == "drip":
                    await self.drip(stream, reply)
                    continue
                if reply.then == "silence":
                    with trio.CancelScope() as silence:
                        # Before the client can notice.
                        self.silences.append(silence)
                        await stream.send_all(reply.data)
                        while await stream.receive_some(65536):
                            pass
                    return
                await stream.send_all(reply.data)
                if reply.then == "close":
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)

    async def drip(self, stream: trio.abc.Stream, reply: Reply) -> None:
        """Send the last bytes one by one."""
        data = reply.data
        await stream.send_all(data[: len(data) - reply.drops])
        for start in range(len(data) - reply.drops, len(data), reply.drop):
            await trio.sleep(reply.pause)
            await stream.send_all(data[start : min(start + reply.drop, len(data))])

    async def tunnel(self, stream: trio.abc.Stream, request: Request) -> bool:
        """Whether this server is a proxy that has accepted the CONNECT."""
        del stream, request
        return False


class Proxy(Server):
    """Connects every CONNECT to `port` on loopback, whatever its host. The script answers everything else."""

    def __init__(self, script: Script, port: int) -> None:
        super().__init__(script)
        self._target = port

    async def tunnel(self, stream: trio.abc.Stream, request: Request) -> bool:
        """Forward bytes both ways until one side closes."""
        far = await trio.open_tcp_stream("127.0.0.1", self._target)
        await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
            try:
                async for piece in source:
                    await target.send_all(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, stream, far)
            nursery.start_soon(pump, far, stream)
        return True


@asynccontextmanager
async def serving(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run `server` on a free port until the block ends."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listeners[0].socket.getsockname()[1]

        async def handle(stream: trio.SocketStream) -> None:
            await server.handle(trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        try:
            yield server
        except (LazyfsError, AssertionError) as error:
            failure = error  # raised below, because a nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure:
        raise failure


def reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A response. `content_length="…"` and the like replace the headers that the body implies."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named = {"content-length": str(len(body))} | named
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in named.items() if value)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def partial(blob: bytes | mmap, request: Request) -> bytes:
    """The correct response to a range request for `blob`."""
    start, _, end = request.headers["range"].removeprefix("bytes=").partition("-")
    piece = blob[int(start) : int(end) + 1]
    return reply(206, piece, content_range=f"bytes {start}-{end}/{len(blob)}")
