"""The order of prefetch: in which order chunks are fetched that no reader waits for. Nothing else decides it.

What a start needs comes first. The author of a layer marks that by the order of its files and by a landmark (layertar/plan.py
writes both, from a list of paths that converter/prioritize.py maps to layers). The rest follows layer by layer, in blob order,
because neighbours come in one request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lazyfs.fetch.piece import LayerBlob, Piece


class Stage(NamedTuple):
    """Pieces of one layer that are fetched before the next stage begins."""

    layer: LayerBlob
    pieces: Sequence[Piece]
    """In any order. A request is cut where they leave blob order."""


def prefetch_order(layers: Sequence[tuple[LayerBlob, int]], *, rest: bool) -> Iterator[Stage]:
    """The stages of an image. Some pieces may be in the store already, and some may be in two stages.

    `layers`: each with the blob offset up to which its author wants it first. Without `rest`, only what a start needs.
    """
    for layer, prefetch_end in layers:
        yield Stage(layer, layer.pieces[: layer.position(prefetch_end)])
    if rest:
        for layer, _ in layers:
            yield Stage(layer, layer.pieces)
