"""A registry that is far away: it serves one OCI layout, and every answer comes late, however many are on their way.

Debian's registry takes 6 ms of processor time for a range; a few hundred of them would measure that instead. This one takes 0.1 ms.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from pathlib import Path
from typing import Self

from tests.images.layout import Layout

_HEAD = re.compile(rb"(GET|HEAD) /v2/[a-z]+/(manifests|blobs)/(\S+) HTTP/1\.1\r\n")
_RANGE = re.compile(rb"\r\n[Rr]ange: bytes=(\d*)-(\d*)\r\n")


class LateRegistry:
    """Serves the layout in `path` as any repository of one name, each answer `delay` seconds late. In a thread."""

    def __init__(self, path: Path, delay: float) -> None:
        self.layout, self.delay = Layout(path), delay
        self.ranges = 0
        """How many were asked for."""
        self.address = ""
        """Where it listens: HOST:PORT."""
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._end.wait()
        server.close()

    def answer(self, head: bytes) -> bytes:
        """What is right to answer."""
        asked = _HEAD.match(head)
        digest = asked[3].decode() if asked else ""
        if asked and asked[2] == b"manifests" and ":" not in digest:
            digest = self.layout.manifest_of(digest) or ""
        path = self.layout.blob(digest)
        if not asked or not digest.startswith("sha256:") or not path.exists():
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        size = path.stat().st_size
        start, end, status, more = 0, size, "200 OK", ""
        if found := _RANGE.search(head):
            self.ranges += 1
            # `bytes=-N` is the last N.
            start = int(found[1]) if found[1] else size - int(found[2])
            end = min(int(found[2]) + 1, size) if found[1] and found[2] else size
            status, more = "206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
        kind = "application/octet-stream"
        if asked[2] == b"manifests":
            kind = json.loads(path.read_bytes())["mediaType"]
        text = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {end - start}\r\n{more}\r\n"
        return text.encode() + (b"" if asked[1] == b"HEAD" else _read(path, start, end - start))


class _Connection(asyncio.Protocol):
    """One client's requests, which it sends one at a time."""

    def __init__(self, registry: LateRegistry) -> None:
        self._registry = registry
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n\r\n"):
            answer = self._registry.answer(self._received)
            self._received = b""
            asyncio.get_running_loop().call_later(self._registry.delay, self._transport.write, answer)


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, start)
