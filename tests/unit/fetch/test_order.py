"""The order in which chunks are fetched that no reader waits for."""

from __future__ import annotations

from lazyfs.fetch.background import cut_runs
from lazyfs.fetch.order import prefetch_order
from tests.unit.fetch.scripted import make_layer

LOWER, _ = make_layer([(b"a", b"1" * 10), (b"b", b"2" * 20), (b"c", b"3" * 30)])
UPPER, _ = make_layer([(b"d", b"4" * 40), (b"e", b"5" * 50)])


def names(*, rest: bool) -> list[list[int]]:
    """The sizes of the files of each stage."""
    layers = [(LOWER, LOWER.pieces[1].chunk.member), (UPPER, 0)]
    return [[piece.chunk.size for piece in pieces] for _, pieces in prefetch_order(layers, rest=rest)]


def test_every_layers_prefetch_range_comes_before_the_rest() -> None:
    """Layer by layer from the lowest, in blob order. A layer without a landmark has no prefetch range."""
    assert names(rest=True) == [[10], [], [10, 20, 30], [40, 50]]
    assert names(rest=False) == [[10], []]


def test_a_request_follows_the_blob() -> None:
    """A stage may have its pieces in any order: a new request begins where it goes back or jumps."""
    one, two, three = LOWER.pieces
    assert cut_runs([one, two, three]) == [[one, two, three]]
    assert cut_runs([two, one, three]) == [[two], [one, three]]
    assert cut_runs([three, two, one]) == [[three], [two], [one]]
