"""What hangs on a digest."""

from __future__ import annotations

from converter.lost import find_attached, lost_references
from lazyfs.errors import Unreachable
from lazyfs.format.digest import digest_of
from lazyfs.source.protocol import Document
from tests.unit.converter.places import MemoryRepository

DIGEST = digest_of(b"image")


async def test_what_is_attached_is_found_by_its_tag() -> None:
    """Signature, attestation, SBOM, and referrers of registries that have no API for them."""
    source = MemoryRepository()
    tag = DIGEST.replace(":", "-")
    for suffix in (".sig", ".att", ".sbom", ""):
        source.documents[tag + suffix] = Document("", DIGEST, b"")
    found = await find_attached(source, [DIGEST, digest_of(b"other")])
    assert [line.split(" of ")[0] for line in found] == ["a signature", "an attestation", "an SBOM", "referrers"]
    assert all(DIGEST in line for line in found)


async def test_a_source_that_does_not_answer_names_nothing() -> None:
    """Conversion does not fail for what it only wanted to mention."""
    source = MemoryRepository()

    async def away(_reference: str) -> Document:
        raise Unreachable("it is away")

    source.document = away  # type: ignore[method-assign]
    assert await find_attached(source, [DIGEST]) == ()


def test_documents_without_losses_name_none() -> None:
    """No subject, no attestation."""
    assert lost_references([], 0) == ()
