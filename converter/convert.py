"""A whole conversion: of one image, or an index of several, from the source to the destination.

The order at the destination is blobs, manifests, and the tag last: a pull in the meantime gets either the old image or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import trio

from converter.image import NewImage, OldImage, convert_image, read_image
from converter.layers import Line, Request
from converter.lost import find_attached, lost_references
from converter.progress import Progress
from converter.report import Report
from converter.rewrite import rewrite_attestation, rewrite_index
from converter.uploads import Uploads
from lazyfs.errors import InvalidManifest, NotFound
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import (
    MAX_CONFIG,
    MAX_DESCRIPTORS,
    Descriptor,
    Index,
    Manifest,
    is_attestation,
    is_image,
    parse_document,
)
from lazyfs.format.platform import Platform
from lazyfs.source.protocol import Document, ImageSink, ImageSource
from lazyfs.source.selection import MAX_DEPTH, select_image


class ImageSelection(NamedTuple):
    """Which of several images: the one for `platform`, or all of them if it is None."""

    platform: Platform | None
    named: bool
    """Whether the user named the platform, so that an image for another one is an error even if it is the only one."""


class _Input(NamedTuple):
    document: Document
    whole: Index | None
    """The index, if all of it is converted."""
    images: dict[Digest, OldImage]
    others: dict[Digest, Manifest]
    """Documents that are not images: attestations, and artifacts of other kinds. Copied as they are."""
    indexes: dict[Digest, Index]
    """The indexes inside `whole`, innermost first."""


async def convert(
    source: ImageSource, selector: str, sink: ImageSink, tag: str, selection: ImageSelection, request: Request, progress: Progress
) -> Report:
    """Convert the image `selector` of `source`, and put it under `tag` of `sink`.

    Bad input leaves the sink unchanged; an error while sending, or cancellation, may leave unreferenced blobs there.
    Raises LazyfsError, alone or in an ExceptionGroup.
    """
    began = trio.current_time()
    given = await _read(source, selector, selection)
    new: dict[Digest, NewImage] = {}
    attached: tuple[str, ...] = ()
    with ThreadPoolExecutor(request.workers) as threads:
        async with trio.open_nursery() as nursery:

            async def look_for_attached() -> None:
                nonlocal attached
                attached = await find_attached(source, dict.fromkeys([given.document.digest, *given.images]))

            nursery.start_soon(look_for_attached)
            uploads = Uploads(source, sink, nursery)
            for other in given.others.values():
                for blob in (other.config, *other.layers):
                    await uploads.copy(blob)
            line = Line(source, uploads, request, threads, progress, remember=len(given.images) > 1)
            for number, (digest, image) in enumerate(given.images.items(), 1):
                new[digest] = await convert_image(line, image, last=number == len(given.images))
    documents = {digest: image.document for digest, image in new.items()}
    written = await _write_documents(sink, tag, given, documents)
    lost: tuple[str, ...] = ()
    if written.digest != given.document.digest:
        old = [image.manifest for image in given.images.values()] + list(given.indexes.values())
        lost = (*lost_references([*old, given.whole] if given.whole else old, len(given.others)), *attached)
    return Report(
        f"{source.name}@{given.document.digest}",
        f"{sink.name}:{tag}" if tag else sink.name,
        given.document.digest,
        written.digest,
        tuple(image.report for image in new.values()),
        lost,
        round(trio.current_time() - began, 3),
    )


async def _read(source: ImageSource, selector: str, selection: ImageSelection) -> _Input:
    document = await source.document(selector)
    name = f"{source.name}@{document.digest}"
    parsed = parse_document(document.media_type, document.data, name)
    if isinstance(parsed, Manifest):
        image = await read_image(source, document.digest, parsed)
        _check_platform(image, source, selection)
        return _Input(document, None, {document.digest: image}, {}, {})
    reading = _Reading(source)
    if selection.platform is not None:
        digest, manifest = await select_image(reading, parsed, selection.platform, name)
        chosen = Document(manifest.media_type, digest, manifest.data)
        return _Input(chosen, None, {digest: await read_image(source, digest, manifest)}, {}, {})
    await reading.read_all(parsed, name, 1)
    if not reading.images:
        raise InvalidManifest(f"{name} is an index without an image")
    return _Input(document, parsed, reading.images, reading.others, reading.indexes)


class _Reading:
    """The documents that an index leads to."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._seen: set[Digest] = set()
        self.images: dict[Digest, OldImage] = {}
        self.others: dict[Digest, Manifest] = {}
        self.indexes: dict[Digest, Index] = {}

    async def get(self, reference: str, media_type: str) -> tuple[Digest, Manifest | Index]:
        """See lazyfs.source.selection."""
        document = await self._source.document(reference)
        name = f"{self._source.name}@{document.digest}"
        return document.digest, parse_document(document.media_type or media_type, document.data, name)

    async def blob(self, descriptor: Descriptor) -> bytes:
        """See lazyfs.source.selection."""
        return await self._source.small_blob(descriptor.digest, MAX_CONFIG)

    async def read_all(self, index: Index, name: str, depth: int) -> None:
        """Read every manifest and index that `index` names. `depth` counts the indexes that lead to it, itself included."""
        if depth > MAX_DEPTH:
            raise InvalidManifest(f"{name} is inside of more than {MAX_DEPTH - 1} indexes", hint="Convert it by its own digest")
        if index.unusable:
            raise InvalidManifest(index.unusable[0].reason, hint="Name a --platform to convert one image of the index")
        for entry in index.manifests:
            if entry.digest in self._seen:
                continue
            self._seen.add(entry.digest)
            if len(self._seen) > MAX_DESCRIPTORS:
                raise InvalidManifest(f"{self._source.name}: an index leads to more than {MAX_DESCRIPTORS} documents")
            digest, document = await self.get(entry.digest, entry.media_type)
            if isinstance(document, Index):
                await self.read_all(document, f"{self._source.name}@{digest}", depth + 1)
                self.indexes[digest] = document  # after those that it names
            elif is_attestation(entry) or not is_image(document):
                self.others[digest] = document
            else:
                self.images[digest] = await read_image(self._source, digest, document)


def _check_platform(image: OldImage, source: ImageSource, selection: ImageSelection) -> None:
    there = image.config.platform
    if selection.named and selection.platform is not None and there[:2] != selection.platform[:2]:
        raise NotFound(f"{source.name}@{image.digest} is an image for {there}, not for {selection.platform}")


async def _write_documents(sink: ImageSink, tag: str, given: _Input, images: Mapping[Digest, Document]) -> Document:
    """Write all documents by digest, then the one that gets the tag, which is returned."""
    if given.whole is None:
        (document,) = images.values()
    else:
        documents = dict(images)
        for digest, other in given.others.items():
            documents[digest] = rewrite_attestation(other, digest, images)
        for digest, index in given.indexes.items():
            documents[digest] = rewrite_index(index, digest, documents)
        for document in dict.fromkeys(documents.values()):
            await sink.put_document(document.digest, document)
        document = rewrite_index(given.whole, given.document.digest, documents)
    await sink.put_document(tag, document)
    return document
