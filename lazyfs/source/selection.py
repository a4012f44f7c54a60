"""Selects the image for a platform from an index, through nested indexes.

As in containerd, an entry without a platform is looked into: the config of its manifest says what it is for. Unlike in
containerd, all such entries are tried, not only the first. For hostile indexes, the depth and the number of documents are
bounded.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from lazyfs.errors import InvalidManifest, NotFound
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Descriptor, Index, Manifest, candidates, parse_config
from lazyfs.format.platform import Platform, runnable

MAX_DEPTH: Final = 5
"""Nested indexes on the way to an image, including the outermost."""
MAX_DOCUMENTS: Final = 32
"""Manifests and indexes fetched on the way to one image."""


class DocumentSource(Protocol):
    """Returns verified documents."""

    async def get(self, reference: str, media_type: str) -> tuple[Digest, Manifest | Index]:
        """The manifest or index with a digest. `media_type` is that of its descriptor. Raises SourceError, InvalidInput."""
        ...

    async def blob(self, descriptor: Descriptor) -> bytes:
        """A config. Raises SourceError, InvalidInput."""
        ...


class SelectedImage(NamedTuple):
    """An image of an index."""

    digest: Digest
    """The digest of its manifest."""
    manifest: Manifest


async def select_image(documents: DocumentSource, index: Index, platform: Platform, what: str) -> SelectedImage:
    """The image of `index` that runs best on `platform`. `what` names the index in errors.

    Raises NotFound, listing the available platforms, InvalidManifest for an index over the bounds, and what `documents` raises.
    """
    search = _Search(documents, platform, what)
    found = await search.run(index, 1)
    if found is None:
        available = ", ".join(sorted(search.platforms)) or "none"
        more = f" ({search.unusable[0]})" if search.unusable else ""
        raise NotFound(
            f"{what} has nothing for {platform}; its platforms: {available}{more}", hint="Name one of them with --platform"
        )
    return found


class _Search:
    def __init__(self, documents: DocumentSource, platform: Platform, what: str) -> None:
        self._documents = documents
        self._platform = platform
        self._what = what
        self._seen: set[Digest] = set()
        self.unusable: list[str] = []
        self.platforms: set[str] = set()
        """Those that are available, for the error message."""

    async def run(self, index: Index, depth: int) -> SelectedImage | None:
        """The best image of an index at depth `depth`, counting the outermost as 1."""
        if depth > MAX_DEPTH:
            raise InvalidManifest(f"{self._what} holds indexes inside indexes, more than {MAX_DEPTH} deep")
        self.unusable += [entry.reason for entry in index.unusable]
        self.platforms |= {str(entry.platform) for entry in index.manifests if entry.platform is not None}
        entries = candidates(index, self._platform)
        for entry in entries:
            if entry.digest in self._seen:
                continue
            self._seen.add(entry.digest)
            if len(self._seen) > MAX_DOCUMENTS:
                raise InvalidManifest(
                    f"{self._what} does not say which of its images is for {self._platform}, and {MAX_DOCUMENTS} of them are not",
                    hint="Name the image by its own digest",
                )
            digest, document = await self._documents.get(entry.digest, entry.media_type)
            if isinstance(document, Index):
                found = await self.run(document, depth + 1)
                if found is not None:
                    return found
            elif entry.platform is not None or len(entries) == 1 or await self._runs(digest, document):
                return SelectedImage(digest, document)
        return None

    async def _runs(self, digest: Digest, manifest: Manifest) -> bool:
        """Whether the image runs on the platform, according to its config."""
        data = await self._documents.blob(manifest.config)
        try:
            found = parse_config(data, f"the config of {digest}").platform
        except InvalidManifest:
            return False  # not an image: a signature, a chart
        if not (found.os or found.architecture):
            return True
        self.platforms.add(str(found))
        return found in runnable(self._platform)
