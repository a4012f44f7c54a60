"""Pushes a blob (distribution-spec, "Pushing blobs"): in one PUT, or in pieces if the registry wants that.

A broken upload continues where the registry says that it stopped: a GET of its location returns the range that it has. If the
registry does not say, the whole blob is sent again. Nothing is visible under the digest before the closing PUT, which contains
the digest for the registry to check.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlencode

import trio

from lazyfs.errors import BadAnswer, Unreachable, show
from lazyfs.format.digest import Digest
from lazyfs.registry.client import RegistryClient, error_for_status
from lazyfs.registry.http import SETTLING, Response
from lazyfs.registry.retry import DEADLINE, backoff, with_retries
from lazyfs.registry.tokens import Scope
from lazyfs.registry.url import Url, follow

LARGE: Final = 1 << 30
"""Larger blobs are sent in pieces from the start: proxies in front of registries limit the size of a request."""
PIECE: Final = 64 << 20
_READ_SIZE: Final = 1 << 20
_STEP: Final = 64 << 10
"""Bytes sent at a time. httpx allows 20 s for each step, so this also determines the slowest usable line."""
_TRIES: Final = 3
"""Uploads of one blob, each from its first byte."""
_RESUMES: Final = 5
"""Resumptions of an upload without progress in between."""
_SLOWEST: Final = _STEP / 20
"""Bytes per second below which an upload is given up."""
_WANTS_PIECES: Final = frozenset({400, 405, 411, 413, 501})
_KEPT: Final = frozenset({200, 201, 204})
_OUT_OF_ORDER: Final = 416
_RANGE = re.compile(r"(?:bytes[= ])?\s*0-([0-9]{1,18})\Z")


class _UploadState(NamedTuple):
    """The state of an upload at the registry."""

    location: Url
    kept: int
    """Number of leading bytes that it has."""


class Upload:
    """The upload of one blob to one repository."""

    def __init__(self, client: RegistryClient, repository: str, scope: Scope, digest: Digest, path: Path) -> None:
        self._client = client
        self._start = client.url(f"{repository}/blobs/uploads/")
        self._blob = client.url(f"{repository}/blobs/{digest}")
        self._scope = scope
        self._digest = digest
        self._path = path
        self._what = f"blob {digest} to docker://{client.host}/{repository}"

    async def run(self, progress: Callable[[int], None]) -> None:
        """Send the blob. `progress` gets the bytes of each step, and those of a failed try as a negative count.

        Raises Unauthorized, Unreachable, BadAnswer, NotFound. Cancelled: the registry drops what it has after a while.
        """
        size = (await trio.to_thread.run_sync(self._path.stat)).st_size
        meter = _Meter(progress)
        ways = (self._in_pieces,) if size > LARGE else (self._whole, self._in_pieces)
        deadline = _TRIES * _deadline(size)
        for way in ways:
            answer = await with_retries(self._what, partial(way, size, meter), deadline=deadline, tries=_TRIES)
            if answer.status in _KEPT:
                return self._check(answer)
            if answer.status not in _WANTS_PIECES:
                break
        raise error_for_status(self._what, answer.url, answer.status, answer.body)

    async def _whole(self, size: int, meter: _Meter) -> Response:
        meter.set(0)
        location, smallest = await self._begin()
        try:
            return await self._close(location, 0, size, meter)
        except Unreachable:
            state = await self._query_state(location, size)
            if state is None or not state.kept:
                raise
            return await self._send_pieces(state, size, smallest, meter)

    async def _in_pieces(self, size: int, meter: _Meter) -> Response:
        location, smallest = await self._begin()
        return await self._send_pieces(_UploadState(location, 0), size, smallest, meter)

    async def _send_pieces(self, state: _UploadState, size: int, smallest: int, meter: _Meter) -> Response:
        """Send the rest of an upload, and close it. After a failed piece, continue with what the registry does not have."""
        step = max(PIECE, smallest)
        fruitless = 0
        most = state.kept
        while state.kept < size:
            meter.set(state.kept)
            end = min(state.kept + step, size)
            try:
                answer = await self._send(
                    "PATCH", state.location, state.kept, end, {"Content-Range": f"{state.kept}-{end - 1}"}, meter
                )
                failure = None
            except Unreachable as error:
                failure = error
            if failure is None and answer.status in {200, 201, 202, 204}:
                # Its Range header is not used: some registries send wrong values, and a piece out of order is refused.
                state = _UploadState(self._location(answer, state.location), end)
                if end > most:
                    most, fruitless = end, 0
                continue
            if failure is None and answer.status != _OUT_OF_ORDER:
                return answer
            failure = failure or Unreachable(f"{self._what}: {answer.url.authority} answers {answer.status} to a piece of it")
            found = await self._query_state(state.location, size)
            if found is None:
                raise failure
            state = found
            if state.kept > most:
                most, fruitless = state.kept, 0
            else:
                fruitless += 1
                if fruitless == _RESUMES:
                    raise failure
            await trio.sleep(backoff(fruitless))
        meter.set(size)
        return await self._close(state.location, size, size, meter)

    async def _close(self, location: Url, start: int, size: int, meter: _Meter) -> Response:
        """The PUT that closes an upload, with the bytes from `start` on."""
        joint = "&" if "?" in location.target else "?"
        url = location._replace(target=f"{location.target}{joint}{urlencode({'digest': self._digest})}")
        try:
            return await self._send("PUT", url, start, size, {}, meter)
        except Unreachable:
            # Perhaps only the response was lost.
            answer = await self._client.ask(self._what, "HEAD", self._blob, self._scope)
            if answer.status != 200:
                raise
            meter.set(size)
            return answer

    async def _query_state(self, location: Url, size: int) -> _UploadState | None:
        """The state of an upload; None if the registry does not say. Raises as `run`."""
        answer = await self._client.ask(self._what, "GET", location, self._scope)
        found = _RANGE.match(answer.headers.get("range", "").strip())
        if answer.status not in {200, 202, 204} or found is None:
            return None
        # Docker's registry answers 0-0 for an empty upload. A single byte is sent again.
        count = int(found[1]) + 1 if found[1] != "0" else 0
        return _UploadState(self._location(answer, location), count) if count <= size else None

    async def _begin(self) -> tuple[Url, int]:
        """Start an upload. Returns where to send it, and the minimum size of a piece other than the last."""
        answer = await self._client.ask(self._what, "POST", self._start, self._scope, headers={"Content-Length": "0"})
        if answer.status != 202:
            raise error_for_status(self._what, answer.url, answer.status, answer.body)
        smallest = answer.headers.get("oci-chunk-min-length", "")
        # What is not a number is ignored: other clients do not even look.
        wish = int(smallest) if smallest.isascii() and smallest.isdigit() and len(smallest) < 19 else 0
        return self._location(answer, None), wish

    async def _send(self, method: str, url: Url, start: int, end: int, headers: Mapping[str, str], meter: _Meter) -> Response:
        """Send bytes `[start, end)` of the file. One try: what the registry did with a broken one is unknown."""
        mark = meter.sent

        def content() -> AsyncIterator[bytes]:
            meter.set(mark)
            return _read(self._path, start, end, meter)

        return await self._client.ask(
            self._what,
            method,
            url,
            self._scope,
            headers={**headers, "Content-Type": "application/octet-stream", "Content-Length": str(end - start)},
            content=content,
            tries=1,
            deadline=_deadline(end - start),
        )

    def _location(self, answer: Response, last: Url | None) -> Url:
        """Where the upload continues: `last` if the response does not say."""
        location = answer.headers.get("location", "")
        return last if last and not location else follow(answer.url, location, "the upload location")

    def _check(self, answer: Response) -> None:
        got = answer.headers.get("docker-content-digest") or self._digest
        if got != self._digest:
            raise BadAnswer(f"{self._what}: the registry says it has kept {show(got)}")


def _deadline(count: int) -> float:
    """Seconds to send this many bytes and to get the response."""
    return DEADLINE + count / _SLOWEST + SETTLING


class _Meter:
    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self.sent = 0

    def add(self, count: int) -> None:
        self.sent += count
        self._progress(count)

    def set(self, to: int) -> None:
        """Set the progress, whatever was sent."""
        if self.sent != to:
            self.add(to - self.sent)


async def _read(path: Path, start: int, end: int, meter: _Meter) -> AsyncIterator[bytes]:
    file = await trio.to_thread.run_sync(path.open, "rb")
    with file:
        while start < end:
            piece = await trio.to_thread.run_sync(os.pread, file.fileno(), min(_READ_SIZE, end - start), start)
            if not piece:
                raise BadAnswer(f"{path} became shorter while it was sent")
            for at in range(0, len(piece), _STEP):
                yield piece[at : at + _STEP]
                meter.add(len(piece[at : at + _STEP]))
            start += len(piece)
