"""The catalog: which objects the mounted images consist of, and from which sources each can be fetched.

The kernel asks by the name of an object, which does not say where its bytes are. The catalog indexes every layer of every
mounted image by inode number: 100 bytes an object, plus its pieces. A layer that several images share is indexed once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import trio

from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.gate.inode import inode_of
from lazyfs.image.layer import Layer

_EARLIER = "what an earlier process had mounted"


class Pieces(Sequence[Piece]):
    """The chunks of one object in order. A view without a copy, because one is made for every lookup and read, whatever the
    object's size."""

    __slots__ = ("_layer", "_places")

    def __init__(self, layer: LayerBlob, places: Sequence[int]) -> None:
        """`places`: for each chunk, its index in the layer's pieces."""
        self._layer = layer
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Piece: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Piece]: ...
    def __getitem__(self, index: int | slice) -> Piece | Sequence[Piece]:
        if isinstance(index, slice):
            return Pieces(self._layer, self._places[index])
        return self._layer.pieces[self._places[index]]


class Supply(NamedTuple):
    """One way to get an object: a layer that holds it, and a fetcher for that layer."""

    fetcher: Fetcher
    layer: LayerBlob
    pieces: Sequence[Piece]
    """The object's chunks in order."""


def key_of(layer: Layer) -> str:
    """Key of an indexed layer. The blob's digest says where its bytes are, and the TOC's digest what they are. Two images may
    name the same blob, and only one of them the right TOC, size and TOC offset."""
    return f"{layer.digest} {layer.dialect.name} {layer.toc_digest} {layer.descriptor.size} {layer.toc_offset}"


class LayerObjects:
    """The objects of one layer. Immutable. Built in a thread, about 1 µs a chunk."""

    def __init__(self, key: str, layer: LayerBlob) -> None:
        self.key = key
        self.layer = layer
        places: dict[int, int | array[int]] = {}
        """By inode number: the index of the only piece, or of each piece in order."""
        open_places: dict[str, array[int]] = {}
        for index, piece in enumerate(layer.pieces):
            content = piece.content
            if len(content.digests) == 1:
                places.setdefault(inode_of(content.name), index)
                continue
            several = open_places.get(content.name)
            if several is None:
                several = open_places[content.name] = array("q", [-1]) * len(content.digests)
            # Equal files are equal objects: for each chunk, the first place is as good as any other.
            if several[piece.number] < 0:
                several[piece.number] = index
        for name, several in open_places.items():
            # If two names collide, on purpose, one object has the number and the other one none: they are never mixed.
            if min(several) >= 0:
                places.setdefault(inode_of(name), several)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def find(self, inode: int) -> Sequence[Piece]:
        """The pieces of the object with this inode number; empty if the layer does not hold all of it. The cost does not depend
        on their number."""
        places = self._places.get(inode)
        if places is None:
            return ()
        if isinstance(places, int):
            return (self.layer.pieces[places],)
        return Pieces(self.layer, places)

    def has(self, inode: int) -> bool:
        """Whether the layer has the object with this inode number."""
        return inode in self._places

    def names(self) -> Iterator[str]:
        """The names of all objects."""
        for places in self._places.values():
            yield self.layer.pieces[places if isinstance(places, int) else places[0]].content.name


class CatalogImage(NamedTuple):
    """A mounted image or a live layer, as the catalog knows it."""

    fetcher: Fetcher
    layers: tuple[str, ...]
    """Keys of its layers."""


class ObjectNames:
    """The names of all objects in some layers. The set is built at the first use, which takes 0.3 µs an object and so does not
    belong on the event loop; after that, a lookup is one in a set."""

    def __init__(self, layers: Iterable[LayerObjects]) -> None:
        self._layers = layers
        self._names: set[str] | None = None

    def __contains__(self, name: object) -> bool:
        if self._names is None:
            self._names = {name for objects in self._layers for name in objects.names()}
        return name in self._names


class Catalog:
    """All objects of all mounted images. An image is `expected` from its mount on, and `added` once its layers are indexed.

    For the event loop. Threads may ask what it holds, because its dictionaries are replaced and never changed.
    """

    def __init__(self) -> None:
        self._layers: dict[str, LayerObjects] = {}
        self._images: dict[str, CatalogImage] = {}
        self._fetchers: dict[str, tuple[Fetcher, ...]] = {}
        """For each layer, the fetchers of the images that have it."""
        self._expected: set[str] = {_EARLIER}
        self._change = trio.Event()

    def expect(self, image: str) -> None:
        """An image is mounted and will be added. Until then, missing objects may belong to it."""
        if image not in self._images:
            self._expected.add(image)

    def begin(self) -> None:
        """All images that an earlier process had mounted are expected by now."""
        self._expected.discard(_EARLIER)
        self._announce()

    def known(self, key: str) -> LayerObjects | None:
        """The layer, if it is indexed already because another image has it."""
        return self._layers.get(key)

    def add(self, image: str, fetcher: Fetcher, layers: tuple[LayerObjects, ...]) -> None:
        """Make the objects of `image` available through `fetcher`."""
        known = CatalogImage(fetcher, tuple(objects.key for objects in layers))
        new = {objects.key: objects for objects in layers if objects.key not in self._layers}
        self._replace(self._layers | new, self._images | {image: known})
        self._expected.discard(image)
        self._announce()

    def remove(self, image: str) -> None:
        """The last mount of `image` is gone."""
        self._replace(self._layers, {name: known for name, known in self._images.items() if name != image})
        self._expected.discard(image)
        self._announce()

    def _replace(self, layers: dict[str, LayerObjects], images: dict[str, CatalogImage]) -> None:
        """Costs a pass over the layers of all images."""
        fetchers: dict[str, list[Fetcher]] = {}
        for known in images.values():
            for key in dict.fromkeys(known.layers):
                fetchers.setdefault(key, []).append(known.fetcher)
        self._images = images
        self._layers = {key: objects for key, objects in layers.items() if key in fetchers}
        self._fetchers = {key: tuple(several) for key, several in fetchers.items()}

    @property
    def is_complete(self) -> bool:
        """Whether every mounted image is indexed. If so, an object that is not found does not exist."""
        return not self._expected

    async def wait_for_change(self) -> None:
        """Wait until an image is added or removed."""
        await self._change.wait()

    def find(self, inode: int) -> list[Supply]:
        """Every way to get the object with this inode number."""
        found: list[Supply] = []
        for key, objects in self._layers.items():
            pieces = objects.find(inode)
            # All supplies must have one name, even if numbers collide: the first one decides. The name is a hash of the whole
            # content.
            if pieces and (not found or pieces[0].content.name == found[0].pieces[0].content.name):
                found += [Supply(fetcher, objects.layer, pieces) for fetcher in self._fetchers[key]]
        return found

    def images_with(self, inodes: Iterable[int]) -> set[str]:
        """The images that hold at least one of these objects."""
        wanted, images = set(inodes), self._images
        layers = {key for key, objects in self._layers.items() if any(map(objects.has, wanted))}
        return {image for image, known in images.items() if not layers.isdisjoint(known.layers)}

    def held(self) -> ObjectNames:
        """The names of all objects now, for callers that look up many names."""
        return ObjectNames(self._layers.values())

    def __contains__(self, name: object) -> bool:
        """Whether an image holds the object of this name. Looks into each layer."""
        if not isinstance(name, str):
            return False
        inode = inode_of(name)
        return any(
            pieces and pieces[0].content.name == name for pieces in (objects.find(inode) for objects in self._layers.values())
        )

    def _announce(self) -> None:
        self._change.set()
        self._change = trio.Event()
