"""OCI layouts: read as they come, and written so that nothing is ever incomplete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.errors import BadAnswer, DigestMismatch, InvalidManifest, LocalError, NotFound
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_MANIFEST
from lazyfs.registry.access import AccessOptions
from lazyfs.source.layout import REF_NAME, Layout
from lazyfs.source.protocol import Document
from lazyfs.source.repository import Repository

BLOB = b"a layer's bytes" * 1000
DIGEST = digest_of(BLOB)

Json = dict[str, Any]


def image(number: int) -> Document:
    """A unique image."""
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [], "config": {}, "number": number}).encode()
    return Document(OCI_MANIFEST, digest_of(data), data)


def index_of(path: Path) -> dict[str, Any]:
    """The content of index.json."""
    found = json.loads((path / "index.json").read_text())
    assert isinstance(found, dict)
    return found


def temporaries(path: Path) -> list[Path]:
    """Files without their final name."""
    return list(path.rglob(".tmp-*"))


async def put(layout: Layout, folder: Path, data: bytes = BLOB) -> Digest:
    """Send `data` through a file."""
    source = folder / "source"
    source.write_bytes(data)
    await layout.put_blob(digest_of(data), source, lambda _: None)
    return digest_of(data)


async def test_what_is_put_is_found(tmp_path: Path) -> None:
    """A new directory becomes a layout that another reader can use."""
    layout = Layout(tmp_path / "new" / "out")
    source = tmp_path / "source"
    source.write_bytes(BLOB)
    steps: list[int] = []
    assert not await layout.has_blob(DIGEST, len(BLOB))
    await layout.put_blob(DIGEST, source, steps.append)
    await layout.put_document("v1", image(1))
    assert sum(steps) == len(BLOB)
    other = Layout(tmp_path / "new" / "out")
    assert await other.has_blob(DIGEST, len(BLOB))
    assert await other.document("v1") == image(1)
    assert await other.document("") == image(1)
    assert await other.document(image(1).digest) == image(1)
    assert await other.small_blob(DIGEST, len(BLOB)) == BLOB
    assert json.loads((tmp_path / "new" / "out" / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert other.name == f"oci:{tmp_path / 'new' / 'out'}"


async def test_files_can_be_shared(tmp_path: Path) -> None:
    """The umask decides who may read, not the mode of temporary files."""
    layout = Layout(tmp_path / "out")
    old = os.umask(0o022)
    try:
        await put(layout, tmp_path)
    finally:
        os.umask(old)
    assert layout.blob_path(DIGEST).stat().st_mode & 0o777 == 0o644


async def test_ranges(tmp_path: Path) -> None:
    """In parts, from the middle, and not beyond the end."""
    layout = Layout(tmp_path)
    await put(layout, tmp_path.parent)
    async with layout.open_range(DIGEST, len(BLOB), 100, 300) as stream:
        assert await stream.receive_exactly(50) == BLOB[100:150]
        assert await stream.receive_exactly(150) == BLOB[150:300]
        with pytest.raises(BadAnswer):
            await stream.receive_exactly(1)


async def test_an_empty_blob(tmp_path: Path) -> None:
    """Nothing to copy, but it exists."""
    layout = Layout(tmp_path / "out")
    digest = await put(layout, tmp_path, b"")
    assert await layout.has_blob(digest, 0)


async def test_a_tag_is_moved_and_nothing_else_is(tmp_path: Path) -> None:
    """Other tags and unknown fields of the index and its entries stay."""
    layout = Layout(tmp_path)
    await layout.put_document("a", image(1))
    index = index_of(tmp_path)
    index["annotations"] = {"mine": "kept"}
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "amd64"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    await layout.put_document("b:c/d", image(2))
    await layout.put_document("b:c/d", image(3))
    found = index_of(tmp_path)
    assert found["annotations"] == {"mine": "kept"}
    assert found["manifests"][0] == index["manifests"][0]
    assert [entry["annotations"][REF_NAME] for entry in found["manifests"]] == ["a", "b:c/d"]
    assert await layout.document("b:c/d") == image(3)
    assert await layout.document("a") == image(1)


async def test_an_image_without_a_tag(tmp_path: Path) -> None:
    """It replaces the previous one without a tag. With several images, one must be named."""
    layout = Layout(tmp_path)
    await layout.put_document("", image(1))
    await layout.put_document("", image(2))
    assert await layout.document("") == image(2)
    await layout.put_document("v1", image(3))
    with pytest.raises(NotFound, match=r"has 2 images.*v1"):
        await layout.document("")


async def rewritten(layout: Layout, path: Path, change: Callable[[Json, Json], Any]) -> bytes:
    """index.json of one image, tagged v1, after `change` was called with it and its entry."""
    await layout.put_document("v1", image(1))
    index = index_of(path)
    change(index, index["manifests"][0])
    data = json.dumps(index).encode()
    (path / "index.json").write_bytes(data)
    return data


def other(entry: Json, **changes: Any) -> Json:
    return entry | {"annotations": {REF_NAME: "v2"}} | changes


@pytest.mark.parametrize(
    "change",
    [
        lambda index, entry: index.update(mediaType=None, annotations=None),
        lambda index, entry: index.update(Manifests=index.pop("manifests")),
        lambda index, entry: entry.update(platform=None, urls=None, data=None),
        lambda index, entry: index["manifests"].append(other(entry, digest="sha512:" + "a" * 128)),
        lambda index, entry: index["manifests"].append(other(entry, digest="", size=-1)),
        lambda index, entry: index["manifests"].append({**entry, "digest": "sha256:" + "a" * 64}),
        lambda index, entry: index["manifests"].insert(
            0, {**entry, "mediaType": "application/x", "digest": "sha256:" + "a" * 64}
        ),
        lambda index, entry: index["manifests"].extend([other(entry, annotations={REF_NAME: str(n)}) for n in range(30_000)]),
    ],
    ids=["null", "capitals", "null in an entry", "sha512 beside it", "no digest", "twice", "of an unknown type", "many"],
)
async def test_what_skopeo_and_umoci_find_is_found(tmp_path: Path, change: Callable[[Json, Json], Any]) -> None:
    """Both were tried with each. When another image is written, the existing bytes stay, except for the new entry."""
    layout = Layout(tmp_path / "out")
    before = json.loads(await rewritten(layout, tmp_path / "out", change))
    assert await layout.document("v1") == image(1)
    await layout.put_document("new", image(2))
    assert await layout.document("new") == image(2)
    after = index_of(tmp_path / "out")
    kept = before.pop("manifests", before.pop("Manifests", None))
    assert after.pop("manifests")[:-1] == kept
    assert after == before


async def test_an_image_of_another_algorithm_is_named_so(tmp_path: Path) -> None:
    """For a missing image, the error lists the others' names, but not all of a thousand."""
    layout = Layout(tmp_path / "out")
    await rewritten(layout, tmp_path / "out", lambda _, entry: entry.update(digest="sha512:" + "a" * 128))
    for reference in ("v1", "v2"):
        with pytest.raises(InvalidManifest if reference == "v1" else NotFound, match="sha512" if reference == "v1" else "none"):
            await layout.document(reference)
    for number in range(25):
        await layout.put_document(f"tag{number}", image(number))
    with pytest.raises(NotFound, match="and 5 more"):
        await layout.document("v2")


async def test_a_document_by_digest_is_not_a_tag(tmp_path: Path) -> None:
    """The manifests of an index are blobs. Only what is tagged is in index.json."""
    layout = Layout(tmp_path)
    await layout.put_document(image(1).digest, image(1))
    assert not (tmp_path / "index.json").exists()
    await layout.put_document("v1", image(2))
    assert len(index_of(tmp_path)["manifests"]) == 1
    assert (await layout.document(image(1).digest)).data == image(1).data


async def test_writers_of_one_layout_wait_for_each_other(tmp_path: Path) -> None:
    """Ten at a time: no tag is lost."""
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(Layout(tmp_path).put_document, f"v{number}", image(number))
    for number in range(10):
        assert await Layout(tmp_path).document(f"v{number}") == image(number)
    assert not temporaries(tmp_path)


@pytest.mark.parametrize("reference", ["v2", "../../etc/passwd", "sha256:" + "0" * 64])
async def test_missing_images(tmp_path: Path, reference: str) -> None:
    """Not found; the error lists what there is."""
    layout = Layout(tmp_path)
    await layout.put_document("v1", image(1))
    with pytest.raises(NotFound):
        await layout.document(reference)


async def test_no_layout_at_all(tmp_path: Path) -> None:
    """Neither a missing directory nor one with other content."""
    with pytest.raises(NotFound, match="not an OCI layout"):
        await Layout(tmp_path / "nowhere").document("v1")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(NotFound, match="not an OCI layout"):
        await Layout(tmp_path).document("v1")


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "md5:1", "sha256:" + "a" * 63 + "/"])
async def test_no_path_leads_out(tmp_path: Path, digest: str) -> None:
    """Paths come from digests only, whoever claims that they are digests."""
    layout = Layout(tmp_path)
    await layout.put_document("v1", image(1))
    with pytest.raises(InvalidManifest):
        await layout.small_blob(Digest(digest), 100)
    with pytest.raises(InvalidManifest):
        await layout.put_blob(Digest(digest), tmp_path / "index.json", lambda _: None)
    with pytest.raises(InvalidManifest):
        await layout.document(digest if digest.startswith("sha256:") else "sha256:" + digest)


async def test_damage_is_seen(tmp_path: Path) -> None:
    """A flipped byte in a document or config, a truncated blob, a blob too large, an invalid index."""
    layout = Layout(tmp_path)
    await layout.put_document("v1", image(1))
    await put(layout, tmp_path.parent)
    layout.blob_path(image(1).digest).write_bytes(image(2).data)
    with pytest.raises(DigestMismatch):
        await layout.document("v1")
    layout.blob_path(DIGEST).write_bytes(BLOB[:-1])
    with pytest.raises(BadAnswer, match="14999 bytes instead of 15000"):
        async with layout.open_range(DIGEST, len(BLOB), 0, 10):
            pass
    assert not await layout.has_blob(DIGEST, len(BLOB))
    with pytest.raises(InvalidManifest, match="over 100 bytes"):
        await layout.small_blob(DIGEST, 100)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InvalidManifest):
        await layout.document("v1")


async def test_a_blob_that_is_not_a_file(tmp_path: Path) -> None:
    """A FIFO in its place must not block the reader forever."""
    layout = Layout(tmp_path)
    await layout.put_document("v1", image(1))
    os.mkfifo(layout.blob_path(DIGEST))
    with pytest.raises(BadAnswer, match="not a regular file"):
        await layout.small_blob(DIGEST, 100)
    with pytest.raises(BadAnswer, match="not a regular file"):
        async with layout.open_range(DIGEST, 10, 0, 10):
            pass
    assert not await layout.has_blob(DIGEST, 0)


async def test_what_a_crash_left_is_ignored(tmp_path: Path) -> None:
    """Temporary files, also in a directory that had not become a layout yet."""
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / ".tmp-0123").write_text("{")
    (tmp_path / "blobs" / "sha256" / ".tmp-4567").write_bytes(BLOB[:10])
    layout = Layout(tmp_path)
    await layout.put_document("v1", image(1))
    assert await layout.document("v1") == image(1)


async def test_a_crash_before_the_marker_is_mended(tmp_path: Path) -> None:
    """An index.json without oci-layout, as a crash can leave it."""
    layout = Layout(tmp_path)
    await layout.put_document("v1", image(1))
    (tmp_path / "oci-layout").unlink()
    await layout.put_document("v2", image(2))
    assert await layout.document("v1") == image(1)


async def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """A typo must not scatter blobs over a home directory."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(LocalError, match="not an OCI layout"):
        await Layout(tmp_path).put_document("v1", image(1))
    assert os.listdir(tmp_path) == ["thesis.tex"]


async def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the fsync: no blob, no temporary file, and the index is unchanged."""
    layout = Layout(tmp_path / "out")
    await layout.put_document("v1", image(1))
    before = (tmp_path / "out" / "index.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalError, match="No space left"):
        await put(layout, tmp_path)
    with pytest.raises(LocalError, match="No space left"):
        await layout.put_document("v2", image(2))
    assert not layout.blob_path(DIGEST).exists()
    assert (tmp_path / "out" / "index.json").read_bytes() == before
    assert not temporaries(tmp_path)


async def test_a_cancelled_put_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled at the first step."""
    layout = Layout(tmp_path / "out")
    source = tmp_path / "source"
    source.write_bytes(bytes(20 << 20))
    digest = digest_of(source.read_bytes())
    with trio.CancelScope() as scope:
        await layout.put_blob(digest, source, lambda _: scope.cancel())
    assert scope.cancelled_caught
    assert not await layout.has_blob(digest, 20 << 20)
    assert not temporaries(tmp_path)


async def test_blobs_move_between_layouts(tmp_path: Path) -> None:
    """By a hard link on one disk. Repeating it does no harm. A blob that the origin does not have is not taken."""
    origin, target = Layout(tmp_path / "a"), Layout(tmp_path / "b")
    await put(origin, tmp_path)
    for _ in range(2):
        assert await target.mount_blob(DIGEST, len(BLOB), origin)
    assert origin.blob_path(DIGEST).samefile(target.blob_path(DIGEST))
    assert not await target.mount_blob(DIGEST, len(BLOB) + 1, origin)
    assert not await target.mount_blob(digest_of(b"other"), 5, origin)
    assert not await target.mount_blob(DIGEST, len(BLOB), Repository("localhost:1", "x", AccessOptions()))
    assert not temporaries(tmp_path)


async def test_blobs_are_copied_where_links_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another disk."""
    origin, target = Layout(tmp_path / "a"), Layout(tmp_path / "b")
    await put(origin, tmp_path)

    def other_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    assert await target.mount_blob(DIGEST, len(BLOB), origin)
    assert target.blob_path(DIGEST).read_bytes() == BLOB
    assert not temporaries(tmp_path)
