"""From a reference to verified layers: what is asked, what is kept, what is believed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lazyfs.errors import DigestMismatch, InvalidManifest, InvalidToc, NotFound, NotLazy, StoreFull, Unreachable
from lazyfs.format import bounds
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.estargz import ESTARGZ
from lazyfs.format.footer import build_footer
from lazyfs.format.manifest import OCI_INDEX, OCI_MANIFEST
from lazyfs.format.member import compress_member, inflate_member
from lazyfs.format.platform import Platform
from lazyfs.image.image import load_layers, resolve_image
from lazyfs.image.layer import load_layer
from lazyfs.source.selection import MAX_DEPTH, MAX_DOCUMENTS
from lazyfs.store.store import Store
from tests.unit.image.memory import MemorySource, make_blob

AMD64 = Platform("linux", "amd64")
TOC: dict[str, Any] = {"version": 1, "entries": [{"name": "d", "type": "dir"}]}


async def test_mounting_a_digest_again_asks_nobody(store: Store) -> None:
    """Manifest, config and TOCs are kept; a source that is away is not missed."""
    source = MemorySource()
    digest = source.put_image(make_blob(TOC), make_blob(TOC, padding=5))
    first = await resolve_image(source, "v1", AMD64, store)
    layers = await load_layers(source, store, first)
    source.away = True
    again = await resolve_image(source, digest, AMD64, store)
    assert again == first
    assert await load_layers(source, store, again) == layers
    assert [entry.name for entry in layers[0].entries] == [b"d"]


async def test_what_one_source_says_of_a_blob_is_not_used_for_another(store: Store) -> None:
    """No digest covers a blob's footer alone: a source with a false one harms only its own images."""
    liar, honest = MemorySource(), MemorySource()
    liar.authority = "memory:liar"
    blob = make_blob(TOC, padding=7)
    digest = honest.put_image(blob)
    liar.documents, liar.blobs = honest.documents, dict(honest.blobs)
    liar.blobs[digest_of(blob)] = (
        bytes(3) + compress_member(inflate_member(blob[7:-51], 10_000, "it")) + bytes(4) + build_footer(3)
    )
    for source, offset in ((liar, 3), (honest, 7)):
        image = await resolve_image(source, digest, AMD64, store)
        for _ in range(2):
            [layer] = await load_layers(source, store, image)
            assert layer.toc_offset == offset
        assert [what.split()[0] for what in source.asked].count("range") == 1


async def test_tag_with_the_source_away_names_the_digest_last_seen(store: Store) -> None:
    """A tag may have moved, so it is looked up; the error has a hint."""
    source = MemorySource()
    digest = source.put_image(make_blob(TOC))
    await resolve_image(source, "v1", AMD64, store)
    source.away = True
    with pytest.raises(Unreachable, match=f"memory:image@{digest}, which mounts without the registry"):
        await resolve_image(source, "v1", AMD64, store)


async def test_without_room_an_image_is_used_unkept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes no document more does not keep an image from being mounted."""

    def refuse(*_: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(store.documents, "keep", refuse)
    source = MemorySource()
    digest = source.put_image(make_blob(TOC))
    image = await resolve_image(source, "v1", AMD64, store)
    assert image.digest == digest
    assert len(await load_layers(source, store, image)) == 1


async def test_without_a_store_everything_is_asked_for() -> None:
    """inspect and verify keep nothing."""
    source = MemorySource()
    source.put_image(make_blob(TOC))
    image = await resolve_image(source, "v1", AMD64, None)
    assert len(await load_layers(source, None, image)) == 1
    assert [what.split()[0] for what in source.asked] == ["document", "blob", "range"]


def put_index(source: MemorySource, tag: str, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The descriptor of an index."""
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries), **more}
    digest = source.put_document(OCI_INDEX, body, tag)
    return {"mediaType": OCI_INDEX, "digest": digest, "size": 1}


async def test_an_index_leads_to_this_platform(store: Store) -> None:
    """The entry for the platform is taken, also through indexes inside of the index; the others are listed."""
    source = MemorySource()
    digest = source.put_image(make_blob(TOC), tag="inner")
    entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    inner = put_index(source, "v2", entry)
    assert (await resolve_image(source, "v2", AMD64, store)).digest == digest
    with pytest.raises(NotFound, match="its platforms: linux/amd64"):
        await resolve_image(source, "v2", Platform("linux", "arm64"), store)
    empty = put_index(source, "v3")
    put_index(source, "v4", empty, inner)
    put_index(source, "v5", {**empty, "platform": entry["platform"]}, {**inner, "platform": entry["platform"]})
    for tag in ("v4", "v5"):
        assert (await resolve_image(source, tag, AMD64, store)).digest == digest
    with pytest.raises(NotFound, match="its platforms: linux/amd64"):
        await resolve_image(source, "v4", Platform("linux", "arm64"), store)


async def test_indexes_are_followed_so_far_and_no_further(store: Store) -> None:
    """Depth and number of documents are bounded; each is asked for once."""
    source = MemorySource()
    deep = put_index(source, "v1")
    for _ in range(MAX_DEPTH):
        deep = put_index(source, "v1", deep)
    with pytest.raises(InvalidManifest, match="deep"):
        await resolve_image(source, "v1", AMD64, store)
    many = [put_index(source, f"n{number}", annotations={"n": str(number)}) for number in range(2)]
    put_index(source, "v2", *many, *many)
    source.asked.clear()
    with pytest.raises(NotFound, match="none"):
        await resolve_image(source, "v2", AMD64, store)
    assert len(source.asked) == len(set(source.asked))
    put_index(source, "v3", *(put_index(source, "n", annotations={"n": str(number)}) for number in range(MAX_DOCUMENTS + 1)))
    with pytest.raises(InvalidManifest, match="by its own digest"):
        await resolve_image(source, "v3", AMD64, store)


async def test_an_entry_of_another_algorithm_is_passed_over(store: Store) -> None:
    """And named where nothing else fits."""
    source = MemorySource()
    entry = {"mediaType": OCI_MANIFEST, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    sha512 = {**entry, "digest": "sha512:" + "a" * 128}
    put_index(source, "v1", sha512)
    with pytest.raises(NotFound, match="sha512"):
        await resolve_image(source, "v1", AMD64, store)
    digest = source.put_image(make_blob(TOC), tag="right")
    put_index(source, "v1", sha512, {**entry, "digest": digest})
    assert (await resolve_image(source, "v1", AMD64, store)).digest == digest


async def test_an_image_without_platform_is_known_by_its_config(store: Store) -> None:
    """One of several is the one whose config says so; what is not an image at all is passed over. A single one needs to say nothing."""
    source = MemorySource()
    right = source.put_image(make_blob(TOC), tag="right")
    wrong = source.put_image(make_blob(TOC), tag="wrong", architecture="arm64")
    artifact = source.put_image(tag="artifact", rootfs=None)
    entries = [{"mediaType": OCI_MANIFEST, "digest": digest, "size": 1} for digest in (artifact, wrong, right)]
    unknown = {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}}
    put_index(source, "v1", *entries, unknown)
    assert (await resolve_image(source, "v1", AMD64, store)).digest == right
    put_index(source, "v2", entries[1], unknown)
    assert (await resolve_image(source, "v2", AMD64, store)).digest == wrong
    put_index(source, "v3", *entries[:2])
    with pytest.raises(NotFound, match="its platforms: linux/arm64"):
        await resolve_image(source, "v3", AMD64, store)


async def test_lowest_layer_that_cannot_be_lazy_is_named(store: Store) -> None:
    """With its position, the reason, and the command that cures it."""
    source = MemorySource()
    source.put_image(make_blob(TOC), make_blob(TOC, padding=3), annotated=False)
    image = await resolve_image(source, "v1", AMD64, store)
    with pytest.raises(NotLazy, match=r"names no TOC digest \(layer 1 of 2\).*lazyfs convert memory:image@sha256:"):
        await load_layers(source, store, image)


async def test_small_toc_takes_one_range_and_a_large_one_two() -> None:
    """The first range is a guess at the blob's end."""
    noise = random.Random(1)
    entries = [{"name": f"{noise.getrandbits(64):x}", "type": "dir"} for _ in range(9000)]
    for toc, ranges in ((TOC, 1), ({"version": 1, "entries": entries}, 2)):
        source = MemorySource()
        blob = make_blob(toc, padding=100_000)
        source.put_image(blob)
        image = await resolve_image(source, "v1", AMD64, None)
        assert len((await load_layers(source, None, image))[0].entries) == len(toc["entries"])
        assert sum(what.startswith("range") for what in source.asked) == ranges


def test_the_first_range_is_never_more_than_the_blob() -> None:
    """Small blobs are asked for whole, large ones for a hundredth."""
    for size, most in ((100, 100), (300 << 20, (300 << 20) // 100), (1 << 62, 4 << 20)):
        assert ESTARGZ.first_range(size, "it") == (size - most, size)


async def test_toc_of_another_digest_is_refused(store: Store) -> None:
    """And is not kept."""
    source = MemorySource()
    blob = make_blob(TOC)
    source.put_image(blob)
    image = await resolve_image(source, "v1", AMD64, store)
    (descriptor,) = image.layers
    other = {"version": 1, "entries": []}
    source.blobs[descriptor.digest] = make_blob(other, padding=len(blob) - len(make_blob(other)))
    with pytest.raises(DigestMismatch, match="the TOC of layer"):
        await load_layer(source, store, descriptor)
    assert store.statistics().documents == 2


@pytest.mark.parametrize("place", [0, 100, -30])
async def test_toc_that_comes_wrong_once_is_fetched_again(store: Store, place: int) -> None:
    """Wherever the wrong byte is: in the TOC or in the footer. By another way, and once."""
    source = MemorySource()
    blob = make_blob(TOC)
    source.put_image(blob)
    image = await resolve_image(source, "v1", AMD64, store)
    (descriptor,) = image.layers
    broken = bytearray(blob)
    broken[place] ^= 0xFF
    source.blobs[descriptor.digest] = bytes(broken)
    distrust = source.distrust

    def mend(digest: Digest) -> None:
        distrust(digest)
        source.blobs[digest] = blob

    source.distrust = mend  # type: ignore[method-assign]
    source.asked.clear()
    assert (await load_layer(source, store, descriptor)).entries
    (first, *others, last) = source.asked
    assert others == [f"distrust {descriptor.digest}"] and first == last


async def test_broken_toc_of_the_right_digest_is_fetched_once() -> None:
    """Its bytes are what they should be, so that others would be the same."""
    source = MemorySource()
    source.put_image(make_blob({"version": 1, "entries": [{"name": "x", "type": "no such type"}]}))
    image = await resolve_image(source, "v1", AMD64, None)
    source.asked.clear()
    with pytest.raises(InvalidToc):
        await load_layers(source, None, image)
    assert len(source.asked) == 1


async def test_a_toc_that_is_refused_does_not_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 256 MiB that nobody will read. One that was here before may belong to a mount that an earlier version has accepted."""
    monkeypatch.setattr(bounds, "DESCRIPTION", 1 << 16)
    source = MemorySource()
    source.put_image(make_blob({"version": 1, "entries": [{"name": f"{number:04}", "type": "dir"} for number in range(1500)]}))
    (descriptor,) = (await resolve_image(source, "v1", AMD64, None)).layers
    for is_there in (False, False, True):
        if is_there:
            await load_layer(source, store, descriptor, accepted=True)
        with pytest.raises(InvalidToc):
            await load_layer(source, store, descriptor)
        assert len(store.documents.digests()) == is_there


async def test_layers_that_are_too_much_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone is small enough, and an image of one of them is taken."""
    monkeypatch.setattr(bounds, "DESCRIPTION", 1 << 20)
    source = MemorySource()
    toc = {"version": 1, "entries": [{"name": f"{number:04}", "type": "dir"} for number in range(1500)]}
    source.put_image(make_blob(toc), tag="one")
    source.put_image(*(make_blob(toc, padding=number) for number in range(3)), tag="three")
    await load_layers(source, None, await resolve_image(source, "one", AMD64, None))
    with pytest.raises(InvalidToc, match="in addition to the image's other layers"):
        await load_layers(source, None, await resolve_image(source, "three", AMD64, None))


async def test_layer_without_a_landmark_says_so() -> None:
    """Others' tools may write none; then nothing is wanted first."""
    source = MemorySource()
    source.put_image(make_blob(TOC))
    image = await resolve_image(source, "v1", AMD64, None)
    (layer,) = await load_layers(source, None, image)
    assert layer.landmark == "absent"
    assert layer.prefetch_end == 0


async def test_footer_that_leads_to_another_tar_entry() -> None:
    """No digest covers the footer: the bytes that it points to must be a TOC."""
    source = MemorySource()
    blob = make_blob(TOC)
    source.put_image(blob)
    image = await resolve_image(source, "v1", AMD64, None)
    (descriptor,) = image.layers
    header = bytes(inflate_member(blob, 512, "x")[:512]).replace(b"stargz.index.json", b"stargz.index.joke")
    source.blobs[descriptor.digest] = (compress_member(header) + build_footer(0)).rjust(descriptor.size, b"\0")
    footer_at = descriptor.size - len(compress_member(header)) - 51
    source.blobs[descriptor.digest] = source.blobs[descriptor.digest][:-51] + build_footer(footer_at)
    with pytest.raises(InvalidToc, match=r"stargz\.index\.joke"):
        await load_layer(source, None, descriptor)
