"""Pushing a blob (distribution-spec, "Pushing blobs"): whole in one PUT, or in pieces where the registry wants that.

Nothing is visible under the digest before the closing PUT, which carries the digest for the registry to check.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import trio

from lazyfs.errors import BadAnswer
from lazyfs.format.digest import Digest
from lazyfs.registry.http import Answer
from lazyfs.registry.retry import DEADLINE, patiently
from lazyfs.registry.session import Session, refusal
from lazyfs.registry.tokens import Scope
from lazyfs.registry.url import Url, follow

LARGE: Final = 1 << 30
"""Blobs above this go in pieces at once: proxies in front of registries bound the size of a request."""
PIECE: Final = 64 << 20
MAX_PIECE: Final = 1 << 30
_READ_SIZE: Final = 1 << 20
_TRIES: Final = 3
_SLOWEST: Final = 64 << 10
"""Bytes per second below which an upload is given up."""
_WANTS_PIECES: Final = frozenset({400, 405, 411, 413, 501})


class Upload:
    """One blob on its way to one repository."""

    def __init__(self, session: Session, repository: str, scope: Scope, digest: Digest, path: Path) -> None:
        self._session = session
        self._start = session.url(f"{repository}/blobs/uploads/")
        self._scope = scope
        self._digest = digest
        self._path = path
        self._what = f"blob {digest} to docker://{session.host}/{repository}"

    async def run(self, progress: Callable[[int], None]) -> None:
        """Send it; `progress` gets the bytes of each step, and what a failed try had sent as a negative count.

        Raises Unauthorized, Unreachable, BadAnswer, NotFound. Cancelled: the registry drops what it has after a while.
        """
        size = (await trio.to_thread.run_sync(self._path.stat)).st_size
        meter = _Meter(progress)
        ways = (self._in_pieces,) if size > LARGE else (self._whole, self._in_pieces)
        patience = _TRIES * (DEADLINE + size / _SLOWEST)
        for way in ways:
            answer = await patiently(self._what, partial(way, size, meter), deadline=patience, tries=_TRIES)
            if answer.status in {201, 204}:
                return self._check(answer)
            if answer.status not in _WANTS_PIECES:
                break
        raise refusal(self._what, answer.url, answer.status, answer.body)

    async def _whole(self, size: int, meter: _Meter) -> Answer:
        meter.undo()
        location, _ = await self._begin()
        return await self._send("PUT", self._closing(location), 0, size, {}, meter)

    async def _in_pieces(self, size: int, meter: _Meter) -> Answer:
        meter.undo()
        location, smallest = await self._begin()
        step = max(PIECE, smallest)
        for start in range(0, size, step):
            end = min(start + step, size)
            answer = await self._send("PATCH", location, start, end, {"Content-Range": f"{start}-{end - 1}"}, meter)
            if answer.status not in {201, 202, 204}:
                return answer
            kept = answer.headers.get("range", f"0-{end - 1}").removeprefix("bytes=")
            if kept != f"0-{end - 1}":
                raise BadAnswer(f"{self._what}: of {end} bytes sent, the registry says it has {kept[:40]!r}")
            location = self._location(answer)
        return await self._send("PUT", self._closing(location), 0, 0, {}, meter)

    async def _begin(self) -> tuple[Url, int]:
        """Where to send to, and the least that a piece (but the last) may hold."""
        answer = await self._session.ask(self._what, "POST", self._start, self._scope, headers={"Content-Length": "0"})
        if answer.status != 202:
            raise refusal(self._what, answer.url, answer.status, answer.body)
        smallest = answer.headers.get("oci-chunk-min-length", "0")
        if not (smallest.isascii() and smallest.isdigit() and len(smallest) < 12 and int(smallest) <= MAX_PIECE):
            raise BadAnswer(f"{self._what}: the registry wants pieces of at least {smallest[:40]!r} bytes")
        return self._location(answer), int(smallest)

    async def _send(self, method: str, url: Url, start: int, end: int, headers: Mapping[str, str], meter: _Meter) -> Answer:
        """Bytes `[start, end)` of the file. One try: what the registry made of a broken one, nobody knows."""
        mark = meter.sent

        def content() -> AsyncIterator[bytes]:
            meter.undo(to=mark)
            return _read(self._path, start, end, meter)

        return await self._session.ask(
            self._what,
            method,
            url,
            self._scope,
            headers={**headers, "Content-Type": "application/octet-stream", "Content-Length": str(end - start)},
            content=content,
            tries=1,
            deadline=DEADLINE + (end - start) / _SLOWEST,
        )

    def _location(self, answer: Answer) -> Url:
        return follow(answer.url, answer.headers.get("location", ""), "the upload location")

    def _closing(self, location: Url) -> Url:
        joint = "&" if "?" in location.target else "?"
        return location._replace(target=f"{location.target}{joint}{urlencode({'digest': self._digest})}")

    def _check(self, answer: Answer) -> None:
        got = answer.headers.get("docker-content-digest", self._digest)
        if got != self._digest:
            raise BadAnswer(f"{self._what}: the registry says it has kept {got[:80]!r}")


class _Meter:
    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self.sent = 0

    def add(self, count: int) -> None:
        self.sent += count
        self._progress(count)

    def undo(self, to: int = 0) -> None:
        if self.sent != to:
            self.add(to - self.sent)


async def _read(path: Path, start: int, end: int, meter: _Meter) -> AsyncIterator[bytes]:
    file = await trio.to_thread.run_sync(path.open, "rb")
    with file:
        while start < end:
            piece = await trio.to_thread.run_sync(os.pread, file.fileno(), min(_READ_SIZE, end - start), start)
            if not piece:
                raise BadAnswer(f"{path} became shorter while it was sent")
            yield piece
            meter.add(len(piece))
            start += len(piece)
