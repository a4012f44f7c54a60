"""Resolves an image: from a reference to the manifest for one platform, its config and its layers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio

from lazyfs.errors import InvalidManifest, LazyfsError, NotLazy, RangeIgnored, SourceError, without_traceback
from lazyfs.format.bounds import ImageBounds
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import (
    MAX_CONFIG,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_document,
)
from lazyfs.format.platform import Platform
from lazyfs.image.keeping import keep
from lazyfs.image.layer import Layer, load_layer
from lazyfs.source.protocol import ImageSource
from lazyfs.source.selection import select_image

if TYPE_CHECKING:
    from lazyfs.store.store import Store

T = TypeVar("T")


class Image(NamedTuple):
    """A manifest and its config, both verified by digest."""

    name: str
    """As a user would write it."""
    digest: Digest
    """The manifest's."""
    manifest: Manifest
    config: ImageConfig

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return self.manifest.layers


async def resolve_image(source: ImageSource, reference: str, platform: Platform, store: Store | None) -> Image:
    """The image that `reference` (a tag or digest) names for `platform`.

    With a store, documents in it are not fetched again and new ones are kept, so a digest that was resolved before
    needs no source. A tag is always looked up at the source, because it may have moved. Raises SourceError, InvalidManifest, DigestMismatch.
    """
    digest, document = await resolve_manifest(source, reference, platform, store)
    name = f"{source.name}@{digest}"
    config = parse_config(await _Documents(source, store).blob(document.config), f"the config of {name}")
    if len(config.diff_ids) != len(document.layers):
        raise InvalidManifest(
            f"{name} has {len(document.layers)} layers, and its config {len(config.diff_ids)} diff IDs",
            hint="The image was built or copied wrongly: no runtime would unpack it",
        )
    return Image(name, digest, document, config)


async def resolve_manifest(
    source: ImageSource, reference: str, platform: Platform, store: Store | None
) -> tuple[Digest, Manifest]:
    """The manifest that `reference` names for `platform`, without its config. Otherwise as `resolve_image`."""
    documents = _Documents(source, store)
    digest, document = await documents.get(reference, "")
    if isinstance(document, Index):
        return await select_image(documents, document, platform, f"{source.name}@{digest}")
    return digest, document


async def load_layers(source: ImageSource, store: Store | None, image: Image) -> tuple[Layer, ...]:
    """Load all layers of `image` in parallel; all must be lazy. Raises the error of the lowest layer that fails, with its position.

    NotLazy also if the registry does not serve ranges of a layer.
    """
    bounds = ImageBounds()
    loads = [partial(load_layer, source, store, descriptor, image=bounds) for descriptor in image.layers]
    results = await all_of(loads)
    for number, result in enumerate(results, 1):
        if isinstance(result, NotLazy | RangeIgnored):
            which = f"(layer {number} of {len(results)})"
            raise NotLazy(
                f"{image.name} cannot be mounted lazily: {result.message} {which}",
                hint=f"Convert it first: lazyfs convert {image.name} DST"
                if isinstance(result, NotLazy)
                else "A registry that serves byte ranges is needed, and no proxy before it that drops them",
            )
        if isinstance(result, LazyfsError):
            raise result
    return tuple(result for result in results if not isinstance(result, LazyfsError))


async def all_of(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | LazyfsError]:
    """What each call returned, or the error it raised, in order; at most 8 at once. Cancelled: all calls are."""
    results: list[T | LazyfsError | None] = [None] * len(calls)
    places = trio.CapacityLimiter(8)

    async def one(position: int) -> None:
        async with places:
            try:
                results[position] = await calls[position]()
            except LazyfsError as error:
                results[position] = without_traceback(error)

    async with trio.open_nursery() as nursery:
        for position in range(len(calls)):
            nursery.start_soon(one, position)
    return [result for result in results if result is not None]


class _Documents:
    """Documents from the store, else from the source."""

    def __init__(self, source: ImageSource, store: Store | None) -> None:
        self._source = source
        self._store = store

    async def get(self, reference: str, media_type: str) -> tuple[Digest, Manifest | Index]:
        kept = await self._kept(reference)
        if kept is not None:
            return Digest(reference), parse_document(media_type, kept, f"{self._source.name}@{reference}")
        try:
            document = await self._source.document(reference)
        except SourceError as error:
            if self._store is None or reference.startswith("sha256:"):
                raise
            known = await trio.to_thread.run_sync(self._store.note, self._note(reference))
            hint = f"It was last seen as {self._source.name}@{known}, which mounts without the registry" if known else error.hint
            raise error.reworded(error.message, hint) from None
        parsed = parse_document(document.media_type, document.data, f"{self._source.name}@{document.digest}")
        await self._keep(document.digest, document.data, reference)
        return document.digest, parsed

    async def blob(self, descriptor: Descriptor) -> bytes:
        kept = await self._kept(descriptor.digest)
        if kept is None:
            kept = await self._source.small_blob(descriptor.digest, min(descriptor.size, MAX_CONFIG))
            await self._keep(descriptor.digest, kept, "")
        return kept

    async def _kept(self, digest: str) -> bytes | None:
        if self._store is None or not digest.startswith("sha256:"):
            return None
        return await trio.to_thread.run_sync(self._store.document, Digest(digest))

    async def _keep(self, digest: Digest, data: bytes, reference: str) -> None:
        store = self._store
        if store is None:
            return
        note = self._note(reference) if reference and not reference.startswith("sha256:") else ""
        await trio.to_thread.run_sync(keep, store, digest, data, note, digest)

    def _note(self, tag: str) -> str:
        return f"tag {self._source.name}:{tag}"
