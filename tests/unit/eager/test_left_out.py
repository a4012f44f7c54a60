"""A layer that shows less than a full pull does, eager or lazy: it is reported once."""

from __future__ import annotations

import json

from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.footer import build_footer
from lazyfs.format.manifest import OCI_LAYER_GZIP
from lazyfs.format.member import compress_member
from lazyfs.store.store import Store
from tests.bad.oci import toc_tar
from tests.unit.converter.making import Item, tar_of
from tests.unit.converter.places import MemoryRepository
from tests.unit.eager.loading import Reports, content, load


def reg(name: bytes, data: bytes = b"") -> Item:
    return Entry(name, "reg", size=len(data)), data


async def test_what_a_whole_layer_leaves_out_is_noted(store: Store) -> None:
    """Entries below whiteouts' names, and files under the format's own; AUFS' metadata is not reported, and links to it are files."""
    place, reports = MemoryRepository(), Reports()
    aufs = [reg(b".wh..wh.aufs"), reg(b".wh..wh.plnk/1", b"linked"), (Entry(b"l", "hardlink", link=b".wh..wh.plnk/1"), b"")]
    place.add_image(tar_of(aufs), tar_of([reg(b".wh.d/x", b"1"), reg(b"stargz.index.json", b"mine"), reg(b"a", b"2")]))
    lower, upper = await load(place, store, reports)
    assert [(entry.name, content(store, entry)) for entry in lower.entries] == [(b"l", b"linked")]
    assert [entry.name for entry in upper.entries] == [b"a"]
    below = "left out one entry below names that begin with .wh., which a full pull shows: '.wh.d/x'"
    own = "left out what the image has under names that belong to the format: '/stargz.index.json'"
    assert reports.notes[2:] == [f"layer {upper.digest[:19]}: {below}; {own}"]


async def test_what_a_lazy_layer_leaves_out_is_noted(store: Store) -> None:
    """The TOC of another converter, which knows nothing of this; also where only lazy layers are taken."""
    place = MemoryRepository()
    toc = json.dumps({"version": 1, "entries": [{"name": ".wh.d/x", "type": "reg"}, {"name": "a", "type": "dir"}]}).encode()
    blob = compress_member(toc_tar(toc)) + build_footer(0)
    place.add_manifest([place.add_blob(blob, OCI_LAYER_GZIP, annotations={TOC_DIGEST: digest_of(toc)})], [digest_of(b"")])
    for lazy_only in (False, True):
        reports = Reports()
        (layer,) = await load(place, store, reports, lazy_only=lazy_only)
        assert [entry.name for entry in layer.entries] == [b"a"]
        assert [note.rpartition(": ")[2] for note in reports.notes] == ["'.wh.d/x'"]
