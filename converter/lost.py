"""Finds what refers to the source image by its digest, and so does not apply to the new one.

Signatures, attestations and SBOMs refer to a manifest's digest. The converter cannot sign for anybody, but it can report what has to
be made again.
"""

from __future__ import annotations

from collections.abc import Iterable

from lazyfs.errors import LazyfsError, show
from lazyfs.format.digest import Digest
from lazyfs.format.foreign_json import fields
from lazyfs.format.manifest import Index, Manifest
from lazyfs.source.protocol import ImageSource

_TAGS = {".sig": "a signature", ".att": "an attestation", ".sbom": "an SBOM", "": "referrers"}
"""The tags, `sha256-HEX` and a suffix, of cosign and of the distribution specification's fallback for referrers."""


async def find_attached(source: ImageSource, digests: Iterable[Digest]) -> tuple[str, ...]:
    """What the source holds that refers to the images `digests`. A source that does not answer counts as having nothing."""
    found = []
    for digest in digests:
        for suffix, what in _TAGS.items():
            tag = digest.replace(":", "-") + suffix
            try:
                await source.document(tag)
            except LazyfsError:
                continue
            found.append(f"{what} of {digest} (tag {tag})")
    return tuple(found)


def lost_references(documents: Iterable[Manifest | Index], attestations: int) -> tuple[str, ...]:
    """References in the documents themselves that the new ones cannot have."""
    lost = [
        f"the subject {show(subject)}, which the source says it refers to"
        for document in documents
        if (subject := _subject(document)) is not None
    ]
    if attestations:
        lost.append(
            f"{attestations} attestations are copied and point to the new images, but their contents speak about the source's"
        )
    return tuple(lost)


def _subject(document: Manifest | Index) -> object:
    """The subject's digest, if there is one."""
    subject = fields(document.raw, ("subject",)).get("subject")
    return fields(subject, ("digest",)).get("digest") if isinstance(subject, dict) else None
