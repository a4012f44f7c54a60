"""Pushing blobs to many kinds of registries."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import BadAnswer, NotFound, SourceError, Unauthorized, Unreachable
from lazyfs.format.digest import digest_of
from lazyfs.registry import retry, uploads
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.credentials import Credentials
from lazyfs.registry.uploads import Upload
from tests.conftest import LogWatch
from tests.unit.registry.scripted import Answer, Reply, Request, Script, Server, reply, serving

BLOB = bytes(range(256)) * 40
DIGEST = digest_of(BLOB)
SCOPE = ("repository:r:pull,push",)


class Receiving:
    """A registry that receives uploads, with its requirements. Each upload has a state in its location, as in real ones."""

    def __init__(self, *, whole: int = 201, chunk_min: int = 0) -> None:
        self.whole = whole
        self.chunk_min = chunk_min
        self.uploads: dict[int, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.keeps: list[int] = []
        """For the next bodies: how many bytes arrive before the connection breaks."""
        self.reports_range = True
        """A GET of an upload returns its state."""

    def __call__(self, request: Request) -> Answer:
        if request.method == "HEAD":
            return reply(200 if request.target.removeprefix("/v2/r/blobs/") in self.blobs else 404)
        if request.method == "POST":
            number = len(self.uploads)
            self.uploads[number] = b""
            wish = {"oci_chunk_min_length": str(self.chunk_min)} if self.chunk_min else {}
            return reply(202, location=f"/v2/r/blobs/uploads/{number}?state=0", **wish)
        found = re.fullmatch(r"/v2/r/blobs/uploads/(\d+)\?state=(\d+)(?:&digest=(\S+))?", request.target)
        assert found, request.target
        number, state, digest = int(found[1]), int(found[2]), found[3]
        if request.method == "GET":
            kept = len(self.uploads[number])
            if not self.reports_range:
                return reply(404)
            return reply(204, location=f"/v2/r/blobs/uploads/{number}?state={kept}", range=f"0-{max(0, kept - 1)}")
        if request.method == "PUT" and not state and self.whole != 201:
            return reply(self.whole)
        if state != len(self.uploads[number]):
            return reply(416)
        if request.body and self.keeps:
            self.uploads[number] += request.body[: self.keeps.pop(0)]
            return Reply(b"", "close")
        self.uploads[number] += request.body
        if request.method == "PATCH":
            start, end = map(int, request.headers["content-range"].split("-"))
            assert (start, end + 1 - start) == (state, len(request.body))
            return reply(202, location=f"/v2/r/blobs/uploads/{number}?state={end + 1}", range=f"0-{end}")
        self.blobs[digest.replace("%3A", ":")] = self.uploads[number]
        return reply(201, docker_content_digest=digest.replace("%3A", ":"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses: a virtual clock would run ahead of the threads that read the file."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0)


@asynccontextmanager
async def sending(script: Script, folder: Path, data: bytes = BLOB) -> AsyncIterator[tuple[Server, Upload]]:
    """A server, and an upload to it."""
    path = folder / "blob"
    path.write_bytes(data)
    async with serving(Server(script)) as server:
        client = RegistryClient(server.host, AccessOptions(Credentials("u", "p")))
        try:
            yield server, Upload(client, "r", SCOPE, digest_of(data), path)
        finally:
            await client.aclose()


@pytest.mark.parametrize("data", [BLOB, b""])
async def test_a_blob_goes_whole(tmp_path: Path, data: bytes) -> None:
    """POST, one PUT with a length, nothing else."""
    registry = Receiving()
    steps: list[int] = []
    async with sending(registry, tmp_path, data) as (server, upload):
        await upload.run(steps.append)
    assert registry.blobs == {digest_of(data): data}
    assert [request.method for request in server.requests] == ["POST", "PUT"]
    assert server.requests[1].headers["content-length"] == str(len(data))
    assert sum(steps) == len(data)


@pytest.mark.parametrize("status", [400, 405, 411, 413, 501])
async def test_a_registry_that_wants_pieces_gets_pieces(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it refuses the whole. The progress ends at the blob's size."""
    monkeypatch.setattr(uploads, "PIECE", 4000)
    registry = Receiving(whole=status)
    steps: list[int] = []
    async with sending(registry, tmp_path) as (server, upload):
        await upload.run(steps.append)
    assert registry.blobs == {DIGEST: BLOB}
    assert [len(request.body) for request in server.requests if request.method == "PATCH"] == [4000, 4000, 2240]
    assert sum(steps) == len(BLOB)


async def test_a_large_blob_goes_in_pieces_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of at least the size that the registry asks for."""
    monkeypatch.setattr(uploads, "LARGE", 10_000)
    monkeypatch.setattr(uploads, "PIECE", 1000)
    registry = Receiving(whole=400, chunk_min=6000)
    async with sending(registry, tmp_path) as (server, upload):
        await upload.run(lambda _: None)
    assert registry.blobs == {DIGEST: BLOB}
    assert [len(request.body) for request in server.requests if request.method == "PATCH"] == [6000, 4240]


@pytest.mark.parametrize("wish", ["x", "-5", "99999999999", "9" * 30, ""])
async def test_invalid_minimum_sizes_of_pieces(wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a number is ignored, and the largest possible size means one piece."""
    monkeypatch.setattr(uploads, "PIECE", 8000)
    registry = Receiving(whole=413)

    def script(request: Request) -> Answer:
        answer = registry(request)
        assert isinstance(answer, bytes)
        wished = f"\r\nOCI-Chunk-Min-Length: {wish}\r\n\r\n".encode()
        return answer.replace(b"\r\n\r\n", wished) if request.method == "POST" else answer

    async with sending(script, tmp_path) as (server, upload):
        await upload.run(lambda _: None)
    assert registry.blobs == {DIGEST: BLOB}
    pieces = [len(request.body) for request in server.requests if request.method == "PATCH"]
    assert pieces == ([10240] if wish == "99999999999" else [8000, 2240])


async def test_a_broken_upload_of_which_nothing_came_starts_again(tmp_path: Path, impatient: None) -> None:
    """The connection breaks in the middle, then 503. What was sent is subtracted from the progress."""
    registry = Receiving()
    trouble: list[Answer] = [Reply(b"", "close"), reply(503)]
    steps: list[int] = []

    def script(request: Request) -> Answer:
        return trouble.pop() if request.method == "PUT" and trouble else registry(request)

    async with sending(script, tmp_path) as (server, upload):
        await upload.run(steps.append)
    assert registry.blobs == {DIGEST: BLOB}
    assert [request.method for request in server.requests if request.method in {"POST", "PUT"}] == ["POST", "PUT"] * 3
    assert sum(steps) == len(BLOB)


@pytest.mark.parametrize("whole", [201, 413])
async def test_a_broken_upload_continues_where_the_registry_says(
    whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """Whole or in pieces: no byte that has arrived is sent again, and the progress is correct."""
    monkeypatch.setattr(uploads, "PIECE", 4000)
    registry = Receiving(whole=whole)
    registry.keeps = [3000, 2500, 0, 10, 0, 0, 0, 0, 1500]
    steps: list[int] = []
    async with sending(registry, tmp_path) as (server, upload):
        await upload.run(steps.append)
    assert registry.blobs == {DIGEST: BLOB}
    assert sum(request.method == "POST" for request in server.requests) == (1 if whole == 201 else 2)
    pieces = [request.headers["content-range"] for request in server.requests if request.method == "PATCH"]
    first = [] if whole == 201 else ["0-3999"]
    assert pieces == [*first, "3000-6999", "5500-9499", "5500-9499", *["5510-9509"] * 5, "7010-10239"]
    assert sum(steps) == len(BLOB)


async def test_a_registry_that_does_not_say_what_it_has_gets_all_of_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """Three times in all."""
    monkeypatch.setattr(uploads, "LARGE", 0)
    monkeypatch.setattr(uploads, "PIECE", 8000)
    registry = Receiving()
    registry.reports_range, registry.keeps = False, [5000, 5000]
    async with sending(registry, tmp_path) as (server, upload):
        await upload.run(lambda _: None)
    assert registry.blobs == {DIGEST: BLOB}
    assert sum(request.method == "POST" for request in server.requests) == 3
    registry.blobs.clear()
    registry.keeps = [5000] * 3
    async with sending(registry, tmp_path) as (_, upload):
        with pytest.raises(Unreachable):
            await upload.run(lambda _: None)
    assert not registry.blobs and not registry.keeps


async def test_an_upload_without_progress_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """Five times from one position, three times from the start."""
    monkeypatch.setattr(uploads, "LARGE", 0)
    registry = Receiving()
    registry.keeps = [0] * 100
    async with sending(registry, tmp_path) as (server, upload):
        with pytest.raises(Unreachable):
            await upload.run(lambda _: None)
    assert sum(request.method == "PATCH" for request in server.requests) == 15


async def test_an_upload_whose_last_answer_is_lost_is_complete(tmp_path: Path) -> None:
    """The registry is asked for the blob before it is sent again."""
    registry = Receiving()

    def script(request: Request) -> Answer:
        answer = registry(request)
        return Reply(b"", "close") if request.method == "PUT" else answer

    steps: list[int] = []
    async with sending(script, tmp_path) as (server, upload):
        await upload.run(steps.append)
    assert [request.method for request in server.requests] == ["POST", "PUT", "HEAD"]
    assert sum(steps) == len(BLOB)


async def test_a_piece_out_of_order_is_followed_by_what_is_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that takes less of a piece than it says refuses the next one with 416, and says what it has."""
    monkeypatch.setattr(uploads, "LARGE", 0)
    monkeypatch.setattr(uploads, "PIECE", 4000)
    registry = Receiving()
    lost = [1000]

    def script(request: Request) -> Answer:
        if request.method == "PATCH" and lost:
            request = request._replace(body=request.body[: -lost.pop()])
            registry.uploads[0] = request.body
            return reply(202, location="/v2/r/blobs/uploads/0?state=4000", range="0-3999")
        return registry(request)

    async with sending(script, tmp_path) as (server, upload):
        await upload.run(lambda _: None)
    assert registry.blobs == {DIGEST: BLOB}
    pieces = [request.headers["content-range"] for request in server.requests if request.method == "PATCH"]
    assert pieces == ["0-3999", "4000-7999", "3000-6999", "7000-10239"]


@pytest.mark.parametrize("location_range", ["", "0-5", "bytes=0-99999", "nonsense"])
async def test_what_a_registry_says_of_a_piece_that_it_took_is_not_read(
    location_range: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """skopeo and containerd do not read it either."""
    monkeypatch.setattr(uploads, "LARGE", 0)
    monkeypatch.setattr(uploads, "PIECE", 4000)
    registry = Receiving()

    def script(request: Request) -> Answer:
        answer = registry(request)
        if request.method == "PATCH":
            state = int(request.headers["content-range"].rpartition("-")[2]) + 1
            return reply(202, location=f"/v2/r/blobs/uploads/0?state={state}", range=location_range)
        return answer

    async with sending(script, tmp_path) as (_, upload):
        await upload.run(lambda _: None)
    assert registry.blobs == {DIGEST: BLOB}


async def test_an_upload_waits_as_long_as_the_registry_asks(tmp_path: Path, jumping: MockClock, expect_log: LogWatch) -> None:
    """Longer than one request may: only the converter waits for an upload."""
    expect_log("no request to it for 50 s")
    registry = Receiving()
    refused: list[float] = []

    def script(request: Request) -> Answer:
        if request.method == "PUT" and not refused:
            refused.append(trio.current_time())
            return reply(429, retry_after="50")
        return registry(request)

    async with sending(script, tmp_path) as (_, upload):
        await upload.run(lambda _: None)
        assert trio.current_time() - refused[0] >= 50
    assert registry.blobs == {DIGEST: BLOB}


@pytest.mark.parametrize("large", [0, 1 << 30])
async def test_a_registry_may_take_long_to_respond_to_an_upload(
    large: int, tmp_path: Path, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hashes or moves the blob before it responds. Until then, nothing shows progress."""
    monkeypatch.setattr(uploads, "LARGE", large)
    registry = Receiving()

    def script(request: Request) -> Answer:
        server.late = 250.0 if request.method == "PUT" else 0.0
        return registry(request)

    async with sending(script, tmp_path) as (server, upload):
        await upload.run(lambda _: None)
    assert registry.blobs == {DIGEST: BLOB}
    assert [request.method for request in server.requests] == (["POST", "PUT"] if large else ["POST", "PATCH", "PUT"])


async def test_trouble_without_end_ends(tmp_path: Path, impatient: None) -> None:
    """Three tries."""
    registry = Receiving()
    async with sending(lambda request: reply(503) if request.method == "PUT" else registry(request), tmp_path) as (
        server,
        upload,
    ):
        with pytest.raises(Unreachable, match="503"):
            await upload.run(lambda _: None)
    assert sum(request.method == "PUT" for request in server.requests) == 3


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ([reply(404)], NotFound, "answers 404"),
        ([reply(403, b'{"errors": [{"code": "DENIED"}]}')], Unauthorized, "DENIED"),
        ([reply(202)], BadAnswer, "upload location"),
        ([reply(202, location="gopher://x/")], BadAnswer, "upload location"),
        ([reply(202, location="/u"), reply(201, docker_content_digest="sha256:" + "0" * 64)], BadAnswer, "says it has kept"),
        ([reply(202, location="/u"), reply(302, location="/v")], BadAnswer, "answers 302"),
        ([reply(202, location="/u"), reply(413), reply(202, location="/u"), reply(413)], BadAnswer, "answers 413"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_refusals(script: list[Answer], kind: type[SourceError], message: str, tmp_path: Path) -> None:
    """Each names the blob and the response."""
    async with sending(script, tmp_path) as (_, upload):
        with pytest.raises(kind, match=message) as caught:
            await upload.run(lambda _: None)
    assert DIGEST in str(caught.value) or "upload location" in message


async def test_a_location_elsewhere_gets_no_authorization(tmp_path: Path) -> None:
    """Some registries send uploads to another host, which gets no credentials."""
    async with serving(Server([reply(201)])) as store, sending([], tmp_path) as (server, upload):
        server.script = [
            reply(401, www_authenticate="Basic realm=x"),
            reply(202, location=f"http://{store.host}/put?sig=1"),
        ]
        await upload.run(lambda _: None)
    assert "authorization" in server.requests[1].headers
    (request,) = store.requests
    assert "authorization" not in request.headers
    assert request.target == f"/put?sig=1&digest={DIGEST.replace(':', '%3A')}"
    assert request.body == BLOB


async def test_a_token_that_runs_out_is_renewed(tmp_path: Path) -> None:
    """A 401 for the PUT: the body is sent again, and the progress is correct."""
    steps: list[int] = []
    script: Script = [reply(202, location="/u"), reply(401, www_authenticate="Basic realm=x"), reply(201)]
    async with sending(script, tmp_path) as (server, upload):
        await upload.run(steps.append)
    assert [len(request.body) for request in server.requests] == [0, len(BLOB), len(BLOB)]
    assert sum(steps) == len(BLOB)


async def test_a_file_that_shrinks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody writes to it while it is sent."""
    registry = Receiving()

    def script(request: Request) -> Answer:
        answer = registry(request)
        (tmp_path / "blob").write_bytes(b"short")
        return answer

    async with sending(script, tmp_path) as (_, upload):
        with pytest.raises(BadAnswer, match="became shorter"):
            await upload.run(lambda _: None)
    assert not registry.blobs
