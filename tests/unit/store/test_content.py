"""Names of contents are derived from their chunks, and differ if these differ."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.format.entry import Chunk
from lazyfs.store.content import content_of, is_name, list_name
from tests.unit.store.contents import content

PIECES = st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=4)


def test_one_chunk_is_named_by_its_digest_and_size() -> None:
    """Anyone with the digest can find the object. No other name could be shared between files that are cut differently."""
    assert content(b"hello").name == f"sha256-{hashlib.sha256(b'hello').hexdigest()}-5"


@given(PIECES, PIECES)
def test_names_differ_where_chunks_differ(first: list[bytes], second: list[bytes]) -> None:
    """Two lists of chunks have the same name exactly if they are the same, cuts included."""
    assert (content(*first).name == content(*second).name) == (first == second)


@given(PIECES)
def test_chunks_cover_the_file(pieces: list[bytes]) -> None:
    """Sizes, offsets and digests are those of the chunks."""
    made = content(*pieces)
    assert made.size == len(b"".join(pieces))
    assert [made.chunk_size(index) for index in range(len(pieces))] == [len(piece) for piece in pieces]
    assert [b"".join(pieces)[at:].startswith(piece) for at, piece in zip(made.offsets, pieces, strict=True)] == [True] * len(
        pieces
    )
    assert made.digests == tuple(hashlib.sha256(piece).digest() for piece in pieces)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [Chunk(1, 5, bytes(32), 0, 0, 0)],
        [Chunk(0, 5, bytes(32), 0, 0, 0), Chunk(6, 5, bytes(32), 0, 0, 0)],
        [Chunk(0, 5, bytes(32), 0, 0, 0), Chunk(4, 5, bytes(32), 0, 0, 0)],
        [Chunk(0, 0, bytes(32), 0, 0, 0)],
        [Chunk(0, 5, bytes(31), 0, 0, 0)],
    ],
    ids=["none", "late start", "gap", "overlap", "empty chunk", "short digest"],
)
def test_an_invalid_list_of_chunks_is_refused(chunks: list[Chunk]) -> None:
    """A list with a gap would name an impossible file."""
    with pytest.raises(ValueError):
        content_of(chunks)


def test_names_from_disk_are_held_against_their_form() -> None:
    """Only well-formed names may become part of a path."""
    assert is_name(content(b"a").name)
    assert is_name(list_name([(1, bytes(32)), (1, bytes(32))]))
    digest = "a" * 64
    wrong = [
        "",
        "../x",
        f"sha256-{digest[1:]}/-1",
        f"sha256-{digest}",
        f"sha256-{digest}-",
        f"sha256-{digest}-01",
        f"sha256-{digest}-1\n",
    ]
    wrong += [f"sha256-{digest}-{10**19}", f"sha512-{digest}-1", f"chunks-{digest}-1", f"sha256-{digest}-\N{SUPERSCRIPT TWO}"]
    assert not any(map(is_name, wrong))


def test_contents_are_compared_by_their_names() -> None:
    """Comparing two of a million chunks costs no more than two of one: a fetch compares each chunk of a run with the wanted
    one."""

    class Untouched(bytes):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("looked at")

        __hash__ = bytes.__hash__

    first, second = (
        msgspec.structs.replace(content(b"a", b"b"), digests=tuple(Untouched(each) for each in content(b"a", b"b").digests))
        for _ in range(2)
    )
    assert first == second and len({first, second}) == 1
    assert first != content(b"a", b"c") and first != first.name
