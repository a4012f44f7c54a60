"""Decides whether a layer already is what was requested, so that it can stay as it is.

It is if its TOC has the digest in the manifest and agrees with its tar, every chunk is where the TOC says and has its digest, and
a new conversion would write the same entries in the same order, cut at the same places. The compression level cannot be seen in a
blob: a request for one always gives a new layer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import zip_longest

import msgspec

from lazyfs.errors import InvalidInput
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import TOC_NAME, Entry
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.manifest import Descriptor
from lazyfs.format.tar import TarMember
from lazyfs.format.tar_header import BLOCK
from lazyfs.format.toc import parse_toc
from lazyfs.format.toc_raw import MAX_TOC_SIZE
from lazyfs.layertar.content import read_content
from lazyfs.layertar.cut import Cut
from lazyfs.layertar.plan import Planned
from lazyfs.layertar.spool import Spool


def chunks_if_as_requested(
    plan: Sequence[Planned], members: Sequence[TarMember], spool: Spool, layer: Descriptor, cut: Cut
) -> int | None:
    """The layer's number of chunks, if it already is what `plan` and `cut` would produce, else None.

    Reads and hashes all of it: runs in a thread.
    """
    what = f"layer {layer.digest}"
    if spool.blob is None or not members or members[-1].entry.name != TOC_NAME or len(plan) != len(members) - 1:
        return None
    if any(planned.entry != member.entry for planned, member in zip(plan, members, strict=False)):
        return None
    try:
        listed = _toc_entries(members[-1], spool, layer, what)
    except InvalidInput:
        return None
    if len(listed) != len(plan):
        return None
    count = 0
    for entry, member in zip(listed, members, strict=False):
        if msgspec.structs.replace(entry, chunks=()) != member.entry or not _chunks_right(entry, member, spool, cut):
            return None
        count += len(entry.chunks)
    return count


def _toc_entries(toc: TarMember, spool: Spool, layer: Descriptor, what: str) -> tuple[Entry, ...]:
    assert spool.blob is not None
    footer = os.pread(spool.blob.fileno(), FOOTER_SIZE, max(layer.size - FOOTER_SIZE, 0))
    toc_offset = parse_footer(footer, layer.size, what)
    if not 0 < toc.entry.size <= MAX_TOC_SIZE or spool.members.get(toc_offset) != toc.extents[0].tar_offset - BLOCK:
        raise InvalidInput(f"{what}: the TOC is not where the footer says")
    data = read_content(Planned(toc.entry, toc.extents), 0, toc.entry.size, spool.read_at)
    if digest_of(data) != layer.annotations.get(TOC_DIGEST):
        raise InvalidInput(f"{what}: the TOC is another than the manifest's")
    return parse_toc(data, toc_offset, what, arrived=layer.size - FOOTER_SIZE - toc_offset)


def _chunks_right(entry: Entry, member: TarMember, spool: Spool, cut: Cut) -> bool:
    content = Planned(member.entry, member.extents)
    for span, chunk in zip_longest(cut(content, spool.read_at), entry.chunks):
        if chunk is None or span != (chunk.file_offset, chunk.size):
            return False
        in_tar = member.extents[0].tar_offset + chunk.file_offset if len(member.extents) == 1 else -1
        if chunk.inner or spool.members.get(chunk.member) != in_tar:
            return False
        if hashlib.sha256(read_content(content, chunk.file_offset, chunk.size, spool.read_at)).digest() != chunk.digest:
            return False
    return True
