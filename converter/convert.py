"""A whole conversion: what the source names, one image or an index of several, to the destination.

The order at the destination is blobs, manifests, and the tag last: whoever pulls meanwhile gets the old image or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import trio

from converter.image import NewImage, OldImage, convert_image, read_image
from converter.layers import Line, Request
from converter.lost import find_attached, inherent_losses
from converter.progress import Progress
from converter.report import Report
from converter.rewrite import rewrite_attestation, rewrite_index
from converter.uploads import Uploads
from lazyfs.errors import InvalidManifest, NotFound
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Index, Manifest, Platform, choose_platform, is_attestation, parse_document
from lazyfs.source.protocol import Document, ImageSink, ImageSource


class Choice(NamedTuple):
    """Which of several images: the one for `platform`, or all of them if it is None."""

    platform: Platform | None
    named: bool
    """Whether the user named it, so that an image for another one is an error even where there is only that."""


class _Input(NamedTuple):
    document: Document
    whole: Index | None
    """Where all of an index is wanted."""
    images: dict[Digest, OldImage]
    attestations: dict[Digest, Manifest]


async def convert(
    source: ImageSource, selector: str, sink: ImageSink, tag: str, choice: Choice, request: Request, progress: Progress
) -> Report:
    """Convert the image `selector` of `source`, and put it under `tag` of `sink`.

    Bad input leaves the sink as it was; an error while sending, or cancellation, may leave blobs there that nothing names.
    Raises LazyfsError, alone or in an ExceptionGroup.
    """
    began = trio.current_time()
    given = await _read(source, selector, choice)
    new: dict[Digest, NewImage] = {}
    attached: tuple[str, ...] = ()
    with ThreadPoolExecutor(request.workers) as threads:
        async with trio.open_nursery() as nursery:

            async def look_for_attached() -> None:
                nonlocal attached
                attached = await find_attached(source, dict.fromkeys([given.document.digest, *given.images]))

            nursery.start_soon(look_for_attached)
            uploads = Uploads(source, sink, nursery)
            for attestation in given.attestations.values():
                for blob in (attestation.config, *attestation.layers):
                    await uploads.copy(blob)
            line = Line(source, uploads, request, threads, progress, remember=len(given.images) > 1)
            for number, (digest, image) in enumerate(given.images.items(), 1):
                new[digest] = await convert_image(line, image, last=number == len(given.images))
    documents = {digest: image.document for digest, image in new.items()}
    written = await _write_documents(sink, tag, given, documents)
    lost: tuple[str, ...] = ()
    if written.digest != given.document.digest:
        old = [image.manifest for image in given.images.values()] + ([given.whole] if given.whole else [])
        lost = (*inherent_losses(old, len(given.attestations)), *attached)
    return Report(
        f"{source.name}@{given.document.digest}",
        f"{sink.name}:{tag}" if tag else sink.name,
        given.document.digest,
        written.digest,
        tuple(image.report for image in new.values()),
        lost,
        round(trio.current_time() - began, 3),
    )


async def _read(source: ImageSource, selector: str, choice: Choice) -> _Input:
    document = await source.document(selector)
    name = f"{source.name}@{document.digest}"
    parsed = parse_document(document.media_type, document.data, name)
    if isinstance(parsed, Manifest):
        image = await read_image(source, document.digest, parsed)
        _check_platform(image, source, choice)
        return _Input(document, None, {document.digest: image}, {})
    if choice.platform is not None:
        chosen = choose_platform(parsed, choice.platform, name)
        document, manifest = await _manifest(source, chosen.digest, chosen.media_type)
        return _Input(document, None, {document.digest: await read_image(source, document.digest, manifest)}, {})
    images: dict[Digest, OldImage] = {}
    attestations: dict[Digest, Manifest] = {}
    for entry in parsed.manifests:
        _, manifest = await _manifest(source, entry.digest, entry.media_type)
        if is_attestation(entry):
            attestations[entry.digest] = manifest
        elif entry.digest not in images:
            images[entry.digest] = await read_image(source, entry.digest, manifest)
    if not images:
        raise InvalidManifest(f"{name} is an index without an image")
    return _Input(document, parsed, images, attestations)


async def _manifest(source: ImageSource, digest: Digest, media_type: str) -> tuple[Document, Manifest]:
    document = await source.document(digest)
    name = f"{source.name}@{digest}"
    parsed = parse_document(document.media_type or media_type, document.data, name)
    if not isinstance(parsed, Manifest):
        raise InvalidManifest(f"{name} is an index inside an index", hint="Convert it by its own digest")
    return document, parsed


def _check_platform(image: OldImage, source: ImageSource, choice: Choice) -> None:
    there = image.config.platform
    if choice.named and choice.platform is not None and there[:2] != choice.platform[:2]:
        raise NotFound(f"{source.name}@{image.digest} is an image for {there}, not for {choice.platform}")


async def _write_documents(sink: ImageSink, tag: str, given: _Input, images: Mapping[Digest, Document]) -> Document:
    """Everything under digests, then what gets the tag, which is returned."""
    if given.whole is None:
        (document,) = images.values()
    else:
        documents = dict(images)
        for digest, attestation in given.attestations.items():
            documents[digest] = rewrite_attestation(attestation, digest, images)
        for document in dict.fromkeys(documents.values()):
            await sink.put_document(document.digest, document)
        document = rewrite_index(given.whole, given.document.digest, documents)
    await sink.put_document(tag, document)
    return document
