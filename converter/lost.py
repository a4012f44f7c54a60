"""What speaks about the source image by its digest, and therefore not about the new one.

Signatures, attestations and SBOMs hang on a manifest's digest. The converter cannot sign for anybody; it can say what has to
be made anew.
"""

from __future__ import annotations

from collections.abc import Iterable

from lazyfs.errors import LazyfsError, show
from lazyfs.format.digest import Digest
from lazyfs.format.foreign_json import fields
from lazyfs.format.manifest import Index, Manifest
from lazyfs.source.protocol import ImageSource

_TAGS = {".sig": "a signature", ".att": "an attestation", ".sbom": "an SBOM", "": "referrers"}
"""What cosign, and the distribution specification's fallback for referrers, put under `sha256-HEX` and a suffix."""


async def find_attached(source: ImageSource, digests: Iterable[Digest]) -> tuple[str, ...]:
    """What the source holds beside the images `digests`. A source that does not answer has nothing to name."""
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
    """What the documents themselves say and the new ones cannot."""
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
    """The digest, if there is one."""
    subject = fields(document.raw, ("subject",)).get("subject")
    return fields(subject, ("digest",)).get("digest") if isinstance(subject, dict) else None
