"""Loads the layers of an image: lazy ones by their TOCs, the others whole, unless they are in the store.

An eager layer is verified by its digests before any name in it is used, and its files are objects in the store before the image
is mounted. From then on it differs from a lazy layer in one way: parts that go missing cannot be fetched on their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import trio

from lazyfs.eager.document import keys_of, recall
from lazyfs.eager.loading import LoadContext, fetch_layers
from lazyfs.eager.progress import Bars, Notify
from lazyfs.errors import DigestMismatch, LazyfsError, NotLazy, RangeIgnored
from lazyfs.format.bounds import ImageBounds
from lazyfs.format.digest import Digest
from lazyfs.image.image import Image, all_of, load_layers
from lazyfs.image.layer import Layer, Whole, load_layer
from lazyfs.reports.steps import Note
from lazyfs.source.protocol import ImageSource
from lazyfs.store.layer_lock import lock_layers
from lazyfs.store.store import Store


async def load_image_layers(
    source: ImageSource, store: Store, image: Image, *, lazy_only: bool, progress: Notify, accepted: bool = False
) -> tuple[Layer, ...]:
    """All layers of `image`, lowest first. Those that are not lazy are fetched whole, unless they are in the store.

    So are lazy layers if the registry does not serve ranges, or if their TOC is not the one that the manifest names: the digest of
    the whole blob shows whether the registry is at fault. They stay eager in this store.

    `accepted`: the image is mounted, perhaps since an earlier version, so new bounds are not applied to its lazy layers.
    `progress` gets a note for each eager layer, and how far it is. With `lazy_only` they are refused: NotLazy. Raises
    InvalidInput, SourceError, LocalError. Cancelled: files that have arrived are kept; nothing else remains.
    """
    if lazy_only:
        return await _noted(await load_layers(source, store, image), progress)
    keys = keys_of(image)
    layers: dict[int, Layer] = {}
    wanted: dict[int, Whole] = {}
    ordinary: set[int] = set()
    bounds = ImageBounds()
    loads = [partial(_load, source, store, image, number, key, bounds, accepted=accepted) for number, key in enumerate(keys)]
    for number, found in enumerate(await all_of(loads)):
        if isinstance(found, NotLazy | RangeIgnored | DigestMismatch):
            descriptor = image.layers[number]
            reason = found.message.removeprefix(f"layer {descriptor.digest} ")
            if isinstance(found, RangeIgnored):
                reason = f"cannot be fetched in ranges: {found.message}"
            else:
                ordinary.add(number)
                if isinstance(found, DigestMismatch):
                    reason = f"has another TOC than its manifest names: {found.message}"
            wanted[number] = Whole(reason, image.config.diff_ids[number])
        elif isinstance(found, LazyfsError):
            raise found
        else:
            layers[number] = found
    if wanted:
        notes = {number: _note(image, number, whole, convert=number in ordinary) for number, whole in wanted.items()}

        async def waiting(digest: Digest) -> None:
            await progress(Note(f"waiting for layer {digest[:19]}, which is being fetched for another mount"))

        async with lock_layers(store, (image.layers[number].digest for number in wanted), waiting) as locks:
            context = LoadContext(source, store, image, keys, bounds, Bars(progress), locks)
            layers |= await _fetch(context, layers, wanted, notes, progress)
    return await _noted(tuple(layers[number] for number in range(len(image.layers))), progress)


async def _noted(layers: tuple[Layer, ...], notify: Notify) -> tuple[Layer, ...]:
    """Returns `layers` after a note for each that shows less than a full pull."""
    for layer in layers:
        if layer.note:
            await notify(Note(f"layer {layer.digest[:19]}: {layer.note}"))
    return layers


async def _load(
    source: ImageSource, store: Store, image: Image, number: int, key: str, bounds: ImageBounds, *, accepted: bool
) -> Layer:
    known = await _recall(store, image, number, key)
    return known or await load_layer(source, store, image.layers[number], accepted=accepted, image=bounds)


async def _recall(store: Store, image: Image, number: int, key: str) -> Layer | None:
    return await trio.to_thread.run_sync(recall, store, key, image.layers[number], image.config.diff_ids[number])


async def _fetch(
    context: LoadContext, known: Mapping[int, Layer], wanted: Mapping[int, Whole], notes: Mapping[int, str], notify: Notify
) -> dict[int, Layer]:
    """The layers `wanted`. The previous holder of a layer lock may have fetched some of them."""
    image = context.image
    fetched = {}
    for number in wanted:
        layer = await _recall(context.store, image, number, context.keys[number])
        if layer is not None:
            fetched[number] = layer
    missing = {number: whole for number, whole in wanted.items() if number not in fetched}
    for number in missing:
        await notify(Note(notes[number]))
    if missing:
        fetched |= await fetch_layers(context, {**known, **fetched}, missing)
    return fetched


def _note(image: Image, number: int, whole: Whole, *, convert: bool) -> str:
    """`convert`: whether a conversion would make the layer lazy."""
    descriptor = image.layers[number]
    size = f"{descriptor.size / 1e6:.1f} MB" if descriptor.size >= 100_000 else f"{descriptor.size} bytes"
    note = (
        f"layer {number + 1} of {len(image.layers)} ({descriptor.digest[:19]}) is not lazy (it {whole.reason}):"
        f" its {size} are fetched whole"
    )
    return f"{note}, which `lazyfs convert {image.name} DST` would save" if convert else note
