"""A repository as source and sink: which documents it accepts, and a full run with Debian's docker-registry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lazyfs.errors import BadAnswer, DigestMismatch, InvalidManifest, NotFound, Unauthorized
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import DOCKER_MANIFEST, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.credentials import Credentials
from lazyfs.source.layout import Layout
from lazyfs.source.protocol import Document
from lazyfs.source.repository import Repository
from tests.docker_registry import Registry
from tests.unit.registry.scripted import Script, Server, partial, reply, serving

BLOB = bytes(range(256)) * 5000
DIGEST = digest_of(BLOB)
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode()

# htpasswd needs bcrypt, which Debian's Python can compute but later ones cannot: computed once, for "me" and "secret".
HTPASSWD = "me:$2b$04$h7HaDOsG2h/Fh8q4i.6tlOoW3k5HHxe1zler12It1goknlfTh/Rgi\n"
AUTH = "auth: {{htpasswd: {{realm: tests, path: {path}}}}}\n"


@asynccontextmanager
async def repository(address: str, name: str = "a/b", creds: Credentials | None = None) -> AsyncIterator[Repository]:
    """A client."""
    opened = Repository(address, name, AccessOptions(creds))
    try:
        yield opened
    finally:
        await opened.aclose()


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[Server, Repository]]:
    """A scripted server."""
    async with serving(Server(script)) as server, repository(server.host) as opened:
        yield server, opened


async def test_a_document_by_tag() -> None:
    """All supported types are accepted. Its digest is what it hashes to."""
    async with scripted([reply(200, MANIFEST, content_type=DOCKER_MANIFEST)]) as (server, opened):
        assert await opened.document("v1") == Document(DOCKER_MANIFEST, digest_of(MANIFEST), MANIFEST)
        assert opened.name == f"docker://{server.host}/a/b"
    assert server.requests[0].target == "/v2/a/b/manifests/v1"
    assert OCI_MANIFEST in server.requests[0].headers["accept"]


async def test_a_document_by_digest_is_verified() -> None:
    """Whatever the registry claims, however often it is asked."""
    other = reply(200, MANIFEST, docker_content_digest=DIGEST)
    async with scripted([reply(200, MANIFEST), other, other]) as (_, opened):
        assert (await opened.document(digest_of(MANIFEST))).data == MANIFEST
        with pytest.raises(DigestMismatch, match="a/b@sha256"):
            await opened.document(DIGEST)


async def test_a_small_blob_is_verified_and_bounded() -> None:
    """A config."""
    async with scripted([reply(200, data) for data in (b"config", b"konfig", b"konfig", b"config")]) as (_, opened):
        digest = digest_of(b"config")
        assert await opened.small_blob(digest, 6) == b"config"
        with pytest.raises(DigestMismatch):
            await opened.small_blob(digest, 6)
        with pytest.raises(BadAnswer, match="over 5 bytes"):
            await opened.small_blob(digest, 5)


async def test_a_document_that_is_wrong_once_is_requested_again() -> None:
    """No caller notices."""
    broken = MANIFEST.replace(b"2", b"3")
    async with scripted([reply(200, data) for data in (broken, MANIFEST, b"konfig", b"config")]) as (server, opened):
        assert (await opened.document(digest_of(MANIFEST))).data == MANIFEST
        assert await opened.small_blob(digest_of(b"config"), 6) == b"config"
        assert len(server.requests) == 4


async def test_a_tag_that_is_wrong_once_is_requested_again() -> None:
    """The registry's own digest header shows it. If it repeats the contradiction, the document counts, as in skopeo."""
    digest = digest_of(MANIFEST)
    broken = reply(200, MANIFEST.replace(b"2", b"3"), docker_content_digest=digest)
    lie = reply(200, MANIFEST, docker_content_digest=DIGEST)
    good = reply(200, MANIFEST, docker_content_digest=digest)
    async with scripted([broken, good, lie, lie, good]) as (server, opened):
        for _ in range(3):
            assert (await opened.document("v1")).digest == digest
        assert not server.script


async def test_a_document_is_bounded() -> None:
    """4 MiB, for reading and writing."""
    async with scripted([reply(200, bytes((4 << 20) + 1))]) as (_, opened):
        with pytest.raises(BadAnswer, match="over 4194304 bytes"):
            await opened.document("v1")
        data = bytes((4 << 20) + 1)
        with pytest.raises(InvalidManifest):
            await opened.put_document("v1", Document(OCI_MANIFEST, digest_of(data), data))


async def test_ranges_come_from_the_blob() -> None:
    """Through the protocol."""
    async with scripted(lambda request: partial(BLOB, request)) as (server, opened):
        async with opened.open_range(DIGEST, len(BLOB), 1000, 70_000) as stream:
            assert await stream.receive_exactly(69_000) == BLOB[1000:70_000]
    assert server.requests[0].target == f"/v2/a/b/blobs/{DIGEST}"


async def test_a_blob_of_another_size_is_damage() -> None:
    """HEAD: present, missing, of another size."""
    length = str(len(BLOB))
    async with scripted([reply(200, content_length=length), reply(404), reply(200, content_length="7")]) as (_, opened):
        assert await opened.has_blob(DIGEST, len(BLOB))
        assert not await opened.has_blob(DIGEST, len(BLOB))
        with pytest.raises(BadAnswer, match="7 bytes instead of"):
            await opened.has_blob(DIGEST, len(BLOB))


@pytest.mark.parametrize(("status", "expected"), [(201, True), (202, False), (403, False), (404, False), (405, False)])
async def test_mounting_is_a_wish(status: int, expected: bool) -> None:
    """Whatever a registry answers, the blob can still be sent."""
    async with scripted([reply(status, location="/u")]) as (server, opened):
        origin = Repository(server.host, "other", AccessOptions())
        assert await opened.mount_blob(DIGEST, len(BLOB), origin) is expected
        await origin.aclose()
    assert server.requests[0].target == f"/v2/a/b/blobs/uploads/?mount={DIGEST}&from=other"


async def test_without_a_token_for_both_repositories_nothing_is_mounted() -> None:
    """The blob is sent instead, which needs only the token of its own repository."""
    async with serving(Server([])) as server, repository(server.host, creds=Credentials("me", "secret")) as opened:
        server.script = [reply(401, www_authenticate=f'Bearer realm="http://{server.host}/token"'), reply(403)]
        async with repository(server.host, "other") as origin:
            assert not await opened.mount_blob(DIGEST, len(BLOB), origin)


async def test_nothing_is_mounted_from_elsewhere(tmp_path: Path) -> None:
    """Another registry, a layout: nothing is requested."""
    async with scripted([]) as (_, opened), repository("localhost:1") as origin:
        assert not await opened.mount_blob(DIGEST, len(BLOB), origin)
        assert not await opened.mount_blob(DIGEST, len(BLOB), Layout(tmp_path))


async def test_a_registry_that_keeps_something_else() -> None:
    """Its digest for our manifest must match ours."""
    async with scripted([reply(201, docker_content_digest=DIGEST), reply(400)]) as (_, opened):
        for message in ("says it has kept", "answers 400"):
            with pytest.raises(BadAnswer, match=message):
                await opened.put_document("v1", Document(OCI_MANIFEST, digest_of(MANIFEST), MANIFEST))


async def push(opened: Repository, path: Path) -> Document:
    """An image of one layer."""
    path.write_bytes(BLOB)
    await opened.put_blob(DIGEST, path, lambda _: None)
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}).encode()
    path.write_bytes(config)
    await opened.put_blob(digest_of(config), path, lambda _: None)
    data = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": OCI_LAYER_GZIP, "digest": DIGEST, "size": len(BLOB)}],
        }
    ).encode()
    document = Document(OCI_MANIFEST, digest_of(data), data)
    await opened.put_document("v1", document)
    return document


@pytest.mark.registry
async def test_push_and_pull(registry: Registry, tmp_path: Path) -> None:
    """Everything that a source and a sink do, with a real registry."""
    async with repository(registry.address) as opened:
        assert not await opened.has_blob(DIGEST, len(BLOB))
        with pytest.raises(NotFound, match="answers 404"):
            await opened.document("v1")
        document = await push(opened, tmp_path / "file")
        assert await opened.has_blob(DIGEST, len(BLOB))
        assert await opened.document("v1") == document
        assert await opened.document(document.digest) == document
        assert await opened.small_blob(DIGEST, len(BLOB)) == BLOB
        for start, end in ((0, len(BLOB)), (0, 1), (len(BLOB) - 1, len(BLOB)), (1000, 900_000)):
            async with opened.open_range(DIGEST, len(BLOB), start, end) as stream:
                assert await stream.receive_exactly(end - start) == BLOB[start:end]
        with pytest.raises(NotFound):
            async with opened.open_range(digest_of(b"none"), 100, 0, 10):
                pass
        with pytest.raises(BadAnswer):
            async with opened.open_range(DIGEST, len(BLOB) + 5, 0, 10):
                pass
        async with repository(registry.address, "c") as other:
            assert await other.mount_blob(DIGEST, len(BLOB), opened)
            assert await other.has_blob(DIGEST, len(BLOB))
            assert not await other.mount_blob(digest_of(b"none"), 4, opened)


@pytest.mark.registry
async def test_push_in_pieces(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way to send, with the same registry."""
    monkeypatch.setattr("lazyfs.registry.uploads.LARGE", 1000)
    monkeypatch.setattr("lazyfs.registry.uploads.PIECE", 500_000)
    async with repository(registry.address) as opened:
        await push(opened, tmp_path / "file")
        assert await opened.small_blob(DIGEST, len(BLOB)) == BLOB
    assert sum(request.method == "PATCH" for request in registry.requests()) == 3


@pytest.mark.registry
async def test_a_registry_checks_the_digest(registry: Registry, tmp_path: Path) -> None:
    """What does not hash to its name is not kept."""
    (tmp_path / "file").write_bytes(b"something else")
    async with repository(registry.address) as opened:
        with pytest.raises(BadAnswer, match="DIGEST_INVALID"):
            await opened.put_blob(DIGEST, tmp_path / "file", lambda _: None)
        assert not await opened.has_blob(DIGEST, len(BLOB))


@pytest.fixture
def closed_registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with a password."""
    closed = Registry(tmp_path / "closed")
    passwords = tmp_path / "htpasswd"
    passwords.write_text(HTPASSWD)
    with closed._config.open("a") as config:
        config.write(AUTH.format(path=passwords))
    with closed:
        yield closed


@pytest.mark.registry
async def test_basic_auth(closed_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From --creds and from config.json. Wrong ones and none are refused."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    address = closed_registry.address
    async with repository(address, creds=Credentials("me", "secret")) as opened:
        document = await push(opened, tmp_path / "file")
        async with opened.open_range(DIGEST, len(BLOB), 5, 10) as stream:
            assert await stream.receive_exactly(5) == BLOB[5:10]
    async with repository(address, creds=Credentials("me", "wrong")) as opened:
        with pytest.raises(Unauthorized, match="401"):
            await opened.document("v1")
    async with repository(address) as opened:
        with pytest.raises(Unauthorized, match="docker login"):
            await opened.document("v1")
        auths = {"auths": {address: {"username": "me", "password": "secret"}}}
        (tmp_path / "config.json").write_text(json.dumps(auths))
        assert await opened.document("v1") == document
        async with opened.open_range(Digest(DIGEST), len(BLOB), 5, 10) as stream:
            assert await stream.receive_exactly(5) == BLOB[5:10]
