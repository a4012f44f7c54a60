"""Describes an eager layer in a TOC written by lazyfs, and finds it again the next time.

It has the same JSON as a converted layer, so it needs no reader of its own (format/toc.py). It exists only in the store, and no
manifest covers it: its digest proves that the bytes are as lazyfs wrote them. A note leads to it from the layers that it was made
of. Since paths may lead through lower layers, these are all layers up to this one, by their digests in manifest and config.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import msgspec

from lazyfs.format.dialects import claimed_digest
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.entry import Chunk
from lazyfs.format.manifest import Descriptor
from lazyfs.format.toc import parse_toc
from lazyfs.format.toc_json import encode_toc
from lazyfs.image.image import Image
from lazyfs.image.keeping import keep
from lazyfs.image.layer import Layer, Whole
from lazyfs.layertar.plan import Planned
from lazyfs.store.store import Store

VERSION: Final = 1
"""The version of these descriptions. Another version does not find them."""


def keys_of(image: Image) -> tuple[str, ...]:
    """For each layer, the key of the note that leads to its document."""
    facts = (
        f"{layer.media_type} {layer.digest} {diff_id} {claimed_digest(layer.annotations)}"
        for layer, diff_id in zip(image.layers, image.config.diff_ids, strict=True)
    )
    chains = accumulate(facts, _link, initial=str(VERSION))
    return tuple(f"whole {chain}" for chain in chains)[1:]


def _link(chain: str, fact: str) -> str:
    return hashlib.sha256(f"{chain}\n{fact}".encode()).hexdigest()


def starts_of(plan: Sequence[Planned]) -> list[int]:
    """The offset of each entry's chunks, one after the other, and finally the end of all of them."""
    return list(accumulate((planned.entry.size for planned in plan), initial=0))


def describe(
    store: Store, key: str, descriptor: Descriptor, whole: Whole, plan: Sequence[Planned], chunks: Sequence[Sequence[Chunk]]
) -> Layer:
    """Blocking. Make the layer from these entries and their chunks, which are in the store, and keep its document under `key`.

    Raises InvalidToc, StoreFull, StoreUnusable.
    """
    entries = [
        msgspec.structs.replace(planned.entry, chunks=tuple(file_chunks)) if file_chunks else planned.entry
        for planned, file_chunks in zip(plan, chunks, strict=True)
    ]
    offset = sum(planned.entry.size for planned in plan)
    data = encode_toc(entries, None)
    digest = digest_of(data)
    listed = parse_toc(data, offset, f"layer {descriptor.digest}", accepted=True)  # exactly as it will be read again
    store.index.change()  # another process that finds the note must find the files as well
    keep(store, digest, data, key, f"{digest} {offset} {whole.reason}")
    return Layer(descriptor, digest, offset, listed, whole)


def recall(store: Store, key: str, descriptor: Descriptor, diff_id: Digest) -> Layer | None:
    """Blocking. The layer as described before; None if it was not, or if its description is gone."""
    note = store.note(key)
    if note is None:
        return None
    digest, _, rest = note.partition(" ")
    offset, _, reason = rest.partition(" ")
    data = store.document(Digest(digest))
    if data is None:
        return None
    what = f"layer {descriptor.digest}"
    return Layer(
        descriptor,
        Digest(digest),
        int(offset),
        parse_toc(data, int(offset), what, accepted=True),
        Whole(reason, diff_id),
    )
