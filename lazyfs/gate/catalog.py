"""Which objects the mounted images consist of, and who can bring each.

The kernel asks by an object's name, which says nothing about where the bytes are. Here every layer of every mounted image
is indexed by inode number: 100 bytes an object beside its pieces, and a layer that several images share is indexed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import trio

from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.gate.inode import inode_of
from lazyfs.image.layer import Layer

_EARLIER = "what an earlier process had mounted"


class Supply(NamedTuple):
    """One way to an object: a layer that holds it, and who fetches from there."""

    fetcher: Fetcher
    layer: LayerBlob
    pieces: tuple[Piece, ...]
    """Its chunks, in order."""


def key_of(layer: Layer) -> str:
    """What an indexed layer goes by: the blob's digest is where its bytes are to be had, its TOC's says which they are. Two images
    may name the same blob, and only one of them the TOC, the size and the place of the TOC that are true."""
    return f"{layer.digest} {layer.toc_digest} {layer.descriptor.size} {layer.toc_offset}"


class LayerObjects:
    """The objects of one layer. Immutable once made, in a thread: about 1 µs a chunk."""

    def __init__(self, key: str, layer: LayerBlob) -> None:
        self.key = key
        self.layer = layer
        places: dict[int, int | list[int]] = {}
        """By inode: the index of the only piece, or of each, in order."""
        for index, piece in enumerate(layer.pieces):
            content = piece.content
            inode = inode_of(content.name)
            if len(content.digests) == 1:
                places.setdefault(inode, index)
                continue
            several = places.setdefault(inode, [-1] * len(content.digests))
            # Equal files are equal objects: the first place of each chunk is as good as the others.
            if isinstance(several, list) and len(several) == len(content.digests) and several[piece.number] < 0:
                several[piece.number] = index
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def find(self, inode: int) -> tuple[Piece, ...]:
        """The pieces of the object with this inode number; empty where the layer has none, or none that is whole."""
        places = self._places.get(inode)
        if places is None:
            return ()
        if isinstance(places, int):
            return (self.layer.pieces[places],)
        pieces = tuple(self.layer.pieces[place] for place in places if place >= 0)
        # A collision of numbers, made on purpose, must not mix two objects.
        sound = len(pieces) == len(places) and len({piece.content.name for piece in pieces}) == 1
        return pieces if sound else ()

    def names(self) -> Iterator[str]:
        """Every object's name."""
        for places in self._places.values():
            yield self.layer.pieces[places if isinstance(places, int) else places[0]].content.name


class Source(NamedTuple):
    """A mounted image, as far as the catalog knows it."""

    fetcher: Fetcher
    layers: tuple[str, ...]
    """Keys."""


class Catalog:
    """All objects of all mounted images. An image is `expected` from its mount on, and `added` when its layers are indexed."""

    def __init__(self) -> None:
        self._layers: dict[str, LayerObjects] = {}
        self._images: dict[str, Source] = {}
        self._expected: set[str] = {_EARLIER}
        self._change = trio.Event()

    def expect(self, image: str) -> None:
        """An image is mounted, and will be added: what it holds is not unknown, only not known yet."""
        if image not in self._images:
            self._expected.add(image)

    def begin(self) -> None:
        """Whatever an earlier process had mounted is expected by now."""
        self._expected.discard(_EARLIER)
        self._announce()

    def known(self, key: str) -> LayerObjects | None:
        """A layer that is indexed already, because another image has it too."""
        return self._layers.get(key)

    def add(self, image: str, fetcher: Fetcher, layers: tuple[LayerObjects, ...]) -> None:
        """Objects of `image` can be asked for; `fetcher` brings them."""
        for objects in layers:
            self._layers.setdefault(objects.key, objects)
        self._images[image] = Source(fetcher, tuple(objects.key for objects in layers))
        self._expected.discard(image)
        self._announce()

    def remove(self, image: str) -> None:
        """No mount of `image` lives any more."""
        self._images.pop(image, None)
        self._expected.discard(image)
        used = {key for source in self._images.values() for key in source.layers}
        for key in self._layers.keys() - used:
            del self._layers[key]
        self._announce()

    @property
    def is_complete(self) -> bool:
        """Whether every mounted image is indexed: then what is not found does not exist."""
        return not self._expected

    async def wait_for_change(self) -> None:
        """Until an image has come or gone."""
        await self._change.wait()

    def find(self, inode: int) -> list[Supply]:
        """Every way to the object with this inode number."""
        found = []
        for key, objects in self._layers.items():
            pieces = objects.find(inode)
            if pieces:
                found += [
                    Supply(source.fetcher, objects.layer, pieces) for source in self._images.values() if key in source.layers
                ]
        # One name, whatever collides: the first found decides.
        return [supply for supply in found if supply.pieces[0].content == found[0].pieces[0].content]

    def images_with(self, inode: int) -> set[str]:
        """The images that hold an object."""
        layers = {key for key, objects in self._layers.items() if objects.find(inode)}
        return {image for image, source in self._images.items() if layers & set(source.layers)}

    def names(self) -> Iterator[str]:
        """Every object's name, of all images; those of several layers more than once."""
        for objects in self._layers.values():
            yield from objects.names()

    def _announce(self) -> None:
        self._change.set()
        self._change = trio.Event()
