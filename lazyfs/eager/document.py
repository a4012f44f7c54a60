"""What a layer that is not lazy holds, written down as a TOC of our own, and found again the next time.

It is the same JSON that a converted layer carries, so it has no reader of its own (format/toc.py). Only the store knows
it: no manifest vouches for it, its digest says that its bytes are as we wrote them, and a note leads to it from what it was
made of. Since names lead through what the layers below hold, that is all layers up to this one, as the manifest and the
config name them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import msgspec

from lazyfs.format.dialects import claimed_text
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
"""Of what we make of a tar. Another one finds nothing of this one's."""


def keys_of(image: Image) -> tuple[str, ...]:
    """For each layer, the note under which its document is found."""
    facts = (
        f"{layer.media_type} {layer.digest} {diff_id} {claimed_text(layer.annotations)}"
        for layer, diff_id in zip(image.layers, image.config.diff_ids, strict=True)
    )
    chains = accumulate(facts, _link, initial=str(VERSION))
    return tuple(f"whole {chain}" for chain in chains)[1:]


def _link(chain: str, fact: str) -> str:
    return hashlib.sha256(f"{chain}\n{fact}".encode()).hexdigest()


def starts_of(plan: Sequence[Planned]) -> list[int]:
    """Where each entry's chunks begin, and at the end where all of them do: one behind the other."""
    return list(accumulate((planned.entry.size for planned in plan), initial=0))


def describe(
    store: Store, key: str, descriptor: Descriptor, whole: Whole, plan: Sequence[Planned], chunks: Sequence[Sequence[Chunk]]
) -> Layer:
    """Blocking. The layer of these entries and their chunks, which are here, its document kept under `key`.

    Raises InvalidToc, StoreFull, StoreUnusable.
    """
    entries = [
        msgspec.structs.replace(planned.entry, chunks=tuple(file_chunks)) if file_chunks else planned.entry
        for planned, file_chunks in zip(plan, chunks, strict=True)
    ]
    offset = sum(planned.entry.size for planned in plan)
    data = encode_toc(entries, None)
    digest = digest_of(data)
    listed = parse_toc(data, offset, f"layer {descriptor.digest}", accepted=True)  # what it says when it is read again
    store.index.change()  # whoever finds the note, in another process, must find the files as well
    keep(store, digest, data, key, f"{digest} {offset} {whole.reason}")
    return Layer(descriptor, digest, offset, listed, whole)


def recall(store: Store, key: str, descriptor: Descriptor, diff_id: Digest) -> Layer | None:
    """Blocking. The layer as it was described before; None where it was not, or no longer is."""
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
