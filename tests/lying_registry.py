"""A registry under a test's control: it serves an OCI layout over HTTP on loopback, and lies on demand.

It lives in a thread of its own, so that what is tested may be a whole command, in this process or in another.
"""

from __future__ import annotations

import json
import mmap
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import trio

from tests.unit.registry.scripted import Answer, Reply, Request, Server, partial, reply, serving

REPOSITORY = "image"
REF_NAME = "org.opencontainers.image.ref.name"

Lie = Callable[[Request, bytes], Answer]
"""What to answer instead of what would be right."""


def silent(_request: Request, _right: bytes) -> Answer:
    """A black hole: it takes the request, and never answers."""
    return Reply(b"", "silence")


class Hosted:
    """A scripted server in a thread, from entering to leaving."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None = None) -> None:
        self.server = server
        self._tls = tls
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._token.run_sync_soon(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._end = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with serving(self.server, self._tls):
            self._started.set()
            await self._end.wait()


class LyingRegistry(Hosted):
    """The layout in `path`, as the repository `image`. Honest until `lie` is set."""

    def __init__(self, path: Path, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(Server(self._answer), tls)
        self._path = path
        self.lie: Lie | None = None

    @classmethod
    def serving(cls, notation: str) -> Self:
        """The layout of an image, `oci:PATH:TAG`."""
        return cls(Path(notation.removeprefix("oci:").rpartition(":")[0]))

    @property
    def image(self) -> str:
        """How it is called."""
        return f"docker://{self.server.host}/{REPOSITORY}"

    @property
    def ranges(self) -> list[str]:
        """The Range headers of all requests for bytes of blobs so far."""
        return [request.headers["range"] for request in self.server.requests if "range" in request.headers]

    def asked_for(self, digest: str = "") -> int:
        """Bytes in all ranges requested so far, of one blob or of all; what was requested twice counts twice."""
        total = 0
        for request in self.server.requests:
            if "range" in request.headers and request.target.endswith(digest):
                first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
                total += int(last) - int(first) + 1
        return total

    def recover(self) -> None:
        """Stop lying, as after a restart: connections that wait for a response are closed."""
        self.lie = None
        self._token.run_sync_soon(self._hang_up)

    def _hang_up(self) -> None:
        for silence in self.server.silences:
            silence.cancel()

    def _answer(self, request: Request) -> Answer:
        right = self._right(request)
        return self.lie(request, right) if self.lie is not None else right

    def _right(self, request: Request) -> bytes:
        kind, _, reference = request.target.removeprefix(f"/v2/{REPOSITORY}/").partition("/")
        if kind == "manifests" and not reference.startswith("sha256:"):
            index = json.loads((self._path / "index.json").read_bytes())
            tagged = (entry["digest"] for entry in index["manifests"] if entry["annotations"][REF_NAME] == reference)
            reference = next(tagged, "")
        blob = self._path / "blobs" / "sha256" / reference.removeprefix("sha256:")
        if kind not in ("manifests", "blobs") or not reference or not blob.is_file():
            return reply(404)
        if "range" in request.headers:
            with blob.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return partial(mapped, request)
        data = blob.read_bytes()
        body = b"" if request.method == "HEAD" else data
        if kind == "blobs":
            return reply(200, body, content_length=str(len(data)))
        return reply(200, body, content_length=str(len(data)), content_type=json.loads(data).get("mediaType", ""))
