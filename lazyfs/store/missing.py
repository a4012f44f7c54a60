"""Finds the chunks that are not in the store, from the index alone: no file is read.

A row counts only if it matches the content. A row of a damaged index does not, nor does any row for a content with a false
size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lazyfs.store.content import Content
from lazyfs.store.index_reader import HeldChunk, IndexReader

_NAMES_A_QUERY: Final = 1000
"""Bounds how long another reader waits for the index: the rows of 30,000 files in one answer would take 20 MB."""
_BRIDGE: Final = 8
"""Positions that nobody asked for are read too, up to this many, instead of making a second query."""


def missing_many(reader: IndexReader, contents: Sequence[Content]) -> list[list[int]]:
    """For each content, the positions of its missing chunks. 3 µs a content."""
    nothing: dict[int, HeldChunk] = {}
    found: list[list[int]] = []
    for at in range(0, len(contents), _NAMES_A_QUERY):
        some = contents[at : at + _NAMES_A_QUERY]
        held = reader.held_many([content.name for content in some])
        found += [absent(content, range(len(content.digests)), held.get(content.name, nothing)) for content in some]
    return found


def lacking(reader: IndexReader, chunks: Sequence[tuple[Content, int]]) -> list[bool]:
    """For each chunk, given as (content, index), whether it is missing. 5 µs a chunk, however many chunks its content has."""
    if all(len(content.digests) == 1 for content, _ in chunks):  # most misses are of small files, and many readers wait for this
        return [bool(indexes) for indexes in missing_many(reader, [content for content, _ in chunks])]
    wanted: dict[str, tuple[Content, set[int]]] = {}
    for content, index in chunks:
        wanted.setdefault(content.name, (content, set()))[1].add(index)
    whole: list[str] = []
    spans: list[tuple[str, int, int]] = []
    for name, (content, indexes) in wanted.items():
        if len(indexes) == len(content.digests):
            whole.append(name)
        else:
            spans.extend(_spans(name, indexes))
    held: dict[str, dict[int, HeldChunk]] = {}
    for at in range(0, len(whole), _NAMES_A_QUERY):
        held.update(reader.held_many(whole[at : at + _NAMES_A_QUERY]))
    for at in range(0, len(spans), _NAMES_A_QUERY):
        for name, found in reader.held_spans(spans[at : at + _NAMES_A_QUERY]).items():
            held.setdefault(name, {}).update(found)
    nothing: dict[int, HeldChunk] = {}
    missing = {name: set(absent(content, indexes, held.get(name, nothing))) for name, (content, indexes) in wanted.items()}
    return [index in missing[content.name] for content, index in chunks]


def absent(content: Content, indexes: Iterable[int], held: dict[int, HeldChunk]) -> list[int]:
    """Those of the indexes that have no row in `held`, or one that does not match."""
    return [
        index
        for index in indexes
        if held.get(index) != (content.offsets[index], content.chunk_size(index), content.digests[index])
    ]


def _spans(name: str, indexes: Iterable[int]) -> Iterator[tuple[str, int, int]]:
    """Ranges of positions, as (name, first, last), that cover the indexes and little else."""
    first = last = -1
    for index in sorted(indexes):
        if first < 0 or index > last + _BRIDGE:
            if first >= 0:
                yield name, first, last
            first = index
        last = index + 1
    yield name, first, last
