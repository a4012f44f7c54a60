"""In which order the chunks are fetched that nobody waits for: the one place that decides it.

What a start needs comes first. Its author says so by the order of a layer's files and a landmark behind them (layertar/plan.py writes
both, from a list of paths in which converter/prioritize.py finds the layers); then comes the rest, layer by layer, in the order of the
blobs, because what lies side by side comes in one request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lazyfs.fetch.piece import LayerBlob, Piece


class Stage(NamedTuple):
    """Pieces of one layer that come one behind the other, all of them before the next stage begins."""

    layer: LayerBlob
    pieces: Sequence[Piece]
    """In any order: a request is cut where it does not follow the blob."""


def prefetch_order(layers: Sequence[tuple[LayerBlob, int]], *, rest: bool) -> Iterator[Stage]:
    """The stages of an image, of which some pieces may be here already and some may be in two stages.

    `layers`: each with the offset in its blob up to which its author wants it first. Without `rest` only what a start needs.
    """
    for layer, prefetch_end in layers:
        yield Stage(layer, layer.pieces[: layer.position(prefetch_end)])
    if rest:
        for layer, _ in layers:
            yield Stage(layer, layer.pieces)
