"""The catalog of the objects of mounted images."""

from __future__ import annotations

from typing import cast

import pytest

from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.gate import catalog
from lazyfs.gate.catalog import Catalog, LayerObjects
from lazyfs.gate.inode import inode_of
from tests.unit.fetch.scripted import RANDOM, make_layer

SMALL = RANDOM.randbytes(50)
LARGE = RANDOM.randbytes(1000)


def fetcher() -> Fetcher:
    """Only compared."""
    return cast("Fetcher", object())


def objects(key: str, *files: bytes) -> LayerObjects:
    """A layer of files in chunks of 100 bytes."""
    layer, _ = make_layer([(b"%d" % number, data) for number, data in enumerate(files)], chunk_size=100)
    return LayerObjects(key, layer)


class Watched(tuple[Piece, ...]):  # noqa: SLOT001  a tuple can have none
    """The pieces of a layer, with a count of accesses."""

    looks = 0

    def __getitem__(self, index: object) -> Piece:  # type: ignore[override]
        self.looks += 1
        return super().__getitem__(index)  # type: ignore[index, return-value]


def watch(layer: LayerBlob) -> Watched:
    watched = layer.pieces = Watched(layer.pieces)
    return watched


def test_a_large_object_is_found_at_the_price_of_a_small_one() -> None:
    """A lookup or read of a file of many chunks accesses few of them; all are there for callers that want them."""
    layer = objects("layer", SMALL, LARGE * 20)
    pieces = watch(layer.layer)
    known = Catalog()
    known.add("image", fetcher(), (layer,))
    content = pieces[-1].content
    before = pieces.looks
    (supply,) = known.find(inode_of(content.name))
    assert len(supply.pieces) == 200 and supply.pieces[123].number == 123
    assert content.name in known and known.images_with([inode_of(content.name)]) == {"image"}
    assert pieces.looks - before < 10
    assert [piece.number for piece in supply.pieces] == list(range(200))
    assert [piece.number for piece in supply.pieces[7:9]] == [7, 8]


def test_layers_live_as_long_as_an_image_that_has_them() -> None:
    """A layer that two images share is found with both, and removed with the last. Its fetchers are in the order of the mounts."""
    shared, own = objects("shared", SMALL), objects("own", LARGE)
    small, large = (inode_of(next(each.names())) for each in (shared, own))
    first, second = fetcher(), fetcher()
    known = Catalog()
    known.add("a", first, (shared, own))
    known.add("b", second, (shared,))
    assert [supply.fetcher for supply in known.find(small)] == [first, second]
    assert known.images_with([small]) == {"a", "b"} and known.images_with([large]) == {"a"}
    known.remove("a")
    assert [supply.fetcher for supply in known.find(small)] == [second]
    assert not known.find(large) and known.known("own") is None and next(own.names()) not in known
    held = known.held()
    known.remove("b")
    assert next(shared.names()) in held and next(own.names()) not in held, "as it was"
    assert next(shared.names()) not in known.held()
    assert not known.find(small) and not known.images_with([small, large])


def test_colliding_numbers_never_mix_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """If two objects have the same inode number, in one layer or in two, the pieces that are found belong to one object."""
    monkeypatch.setattr(catalog, "inode_of", lambda _: 7)
    one, other = LARGE, LARGE[::-1]
    layer = objects("layer", one, other)
    (name,) = {piece.content.name for piece in layer.find(7)}
    assert [piece.number for piece in layer.find(7)] == list(range(10))
    assert list(layer.names()) == [name] and len(layer) == 1
    known = Catalog()
    known.add("a", fetcher(), (objects("first", one),))
    known.add("b", fetcher(), (objects("second", other),))
    known.add("c", fetcher(), (objects("third", SMALL, one),))
    first = next(objects("first", one).names())
    assert {supply.pieces[0].content.name for supply in known.find(7)} == {first}
    assert first in known and next(objects("second", other).names()) in known
    assert f"{first}0" not in known, "a number is not a name"
