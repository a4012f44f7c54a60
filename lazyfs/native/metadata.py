"""The EROFS images of a stack of layers: found if they were built before, else built.

In STORE/erofs:

    VERSION-HEX           an image; VERSION is the writer's, HEX the layer's TOC digest (format/dialects.py). If directories that the
                          layer implies take attributes from the layers below, HEX is a hash of both: the layer has another image on
                          other layers
    VERSION-HEX.layer     what the layer with the TOC digest HEX needs from below (`NeededBelow`, as JSON): with it, the names of a
                          stack's images are known without reading a TOC

Each file is a function of what its name identifies, is complete and durable when it gets its name, and is built again if it was removed.
Most layers imply one directory, their root. Where that is a plain 0755 below, they share their image with every other stack.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from lazyfs.erofs.image import WRITER_VERSION
from lazyfs.erofs.reader import inherited_from
from lazyfs.erofs.work import Build, Built, NeededBelow, Read, publish
from lazyfs.format.dialects import toc_key
from lazyfs.format.digest import Digest
from lazyfs.format.entry import Entry
from lazyfs.format.estargz import ESTARGZ
from lazyfs.native.builder import Builders
from lazyfs.store.store_error import store_error

_PLAIN_ROOT: Final = Entry(b"", "dir")


class LayerMetadata(NamedTuple):
    """Identifies the TOC that describes a layer."""

    toc_digest: Digest
    """Of the TOC document in the store; for a layer that is not lazy, of the TOC that lazyfs made."""
    toc_offset: int
    arrived: int | None = None
    """Bytes of the compressed TOC; None if the TOC was parsed and accepted before."""
    dialect: str = ESTARGZ.name

    @property
    def key(self) -> str:
        """The part of file names that identifies this TOC."""
        return toc_key(self.toc_digest, self.dialect)


def ensure_metadata(store_directory: Path, layers: Sequence[LayerMetadata | Path]) -> tuple[Path, ...]:
    """The images of a stack of `layers`, both lowest first; the result begins with the topmost layer whose root is opaque. Blocking.

    A layer that is a Path is an unpacked directory, and stands for itself. Missing images are built, by at most one process a CPU. Costs
    0.1 ms a layer if none is missing. Raises InvalidToc for a layer that EROFS cannot represent, StoreFull, StoreUnusable, LocalError;
    images that were already built stay.
    """
    stack = _StackImages(store_directory)
    images: list[Path] = []
    for layer in layers:
        image = layer if isinstance(layer, Path) else stack.find(layer, images)
        if image is None:
            break
        images.append(image)
    if len(images) < len(layers):
        with closing(GrowingStack(store_directory, stack)) as growing:
            futures = [growing.add(layer) for layer in (*images, *layers[len(images) :])]
            images = [future.result() for future in futures]
    for depth, layer in reversed(list(enumerate(layers))):
        if isinstance(layer, LayerMetadata) and stack.needed(layer).opaque:
            return tuple(images[depth:])
    return tuple(images)


class GrowingStack:
    """Builds the images of a stack whose layers become known one after the other, each as soon as its TOC is there."""

    def __init__(self, store_directory: Path, known: _StackImages | None = None) -> None:
        """`known`: what is already known of the stack. Raises StoreFull, StoreUnusable."""
        self._stack = known or _StackImages(store_directory)
        self._images: list[Future[Path]] = []
        self._processors = len(os.sched_getaffinity(0))
        self._expected = 0
        """Processes that were started."""
        self._end = ExitStack()
        self._builders = self._end.enter_context(Builders())
        self._pool = self._end.enter_context(ThreadPoolExecutor(self._processors, "lazyfs-metadata"))
        self._end.callback(self._pool.shutdown, wait=False, cancel_futures=True)

    def close(self) -> None:
        """Wait for builds in progress, cancel the others, end the processes. Blocking."""
        self._end.close()

    def expect(self, keys: Sequence[str]) -> None:
        """Start processes for the layers with these TOC keys that were never built, before their TOCs arrive. Blocking."""
        unknown = sum(not self._stack.is_known(key) for key in keys)
        count = max(0, min(unknown, self._processors) - self._expected)
        self._expected += count
        self._builders.start(count)

    def add(self, layer: LayerMetadata | Path) -> Future[Path]:
        """The image of the next layer, the lowest first; the future fails as `ensure_metadata` does."""
        if isinstance(layer, Path):
            image = Future[Path]()
            image.set_result(layer)
        else:
            # No deadlock: a build waits only for images below it, whose builds were submitted earlier.
            image = self._pool.submit(self._stack.build, layer, tuple(self._images), self._builders)
        self._images.append(image)
        return image


class _StackImages:
    """Finds and builds the images of one stack. Raises StoreFull, StoreUnusable."""

    def __init__(self, store_directory: Path) -> None:
        self._documents = store_directory / "documents"
        self._folder = store_directory / "erofs"
        self._needed: dict[str, NeededBelow] = {}
        """By key."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise store_error(error, f"{self._folder} cannot be made") from error

    def needed(self, layer: LayerMetadata) -> NeededBelow:
        """What a layer needs from below. The layer was found or built before."""
        return self._needed[layer.key]

    def find(self, layer: LayerMetadata, below: Sequence[Path]) -> Path | None:
        """The layer's image on the images `below`; None if its TOC must be read or its image built."""
        needed = self._recall(layer)
        if needed is None:
            return None
        image = self._folder / _name(layer, inherited_from(below, needed.implied))
        return image if _touch(image) else None

    def build(self, layer: LayerMetadata, below: Sequence[Future[Path]], builders: Builders) -> Path:
        """The layer's image, found or built. Waits for the images below it."""
        if self._recall(layer) is not None:
            image = self.find(layer, [result.result() for result in below])
            if image is not None:
                return image
        builder = builders.for_this_thread()
        needed = builder.ask(Read(str(self._documents / layer.toc_digest[7:]), *layer), NeededBelow)
        if self._recall(layer) is None:
            self._remember(layer, needed)
        inherited = inherited_from([result.result() for result in below], needed.implied)
        image = self._folder / _name(layer, inherited)
        if not _touch(image):
            builder.ask(Build(str(self._folder), image.name, tuple(inherited.items())), Built)
        return image

    def _recall(self, layer: LayerMetadata) -> NeededBelow | None:
        needed = self._needed.get(layer.key)
        if needed is None:
            try:
                needed = msgspec.json.decode(self._note(layer.key).read_bytes(), type=NeededBelow)
            except (OSError, msgspec.DecodeError):
                return None
            self._needed[layer.key] = needed
        return needed

    def _remember(self, layer: LayerMetadata, needed: NeededBelow) -> None:
        self._needed[layer.key] = needed
        note = self._note(layer.key)
        try:
            note.unlink(missing_ok=True)  # an existing one could not be read
            publish(str(self._folder), note.name, lambda file: file.writelines([msgspec.json.encode(needed)]))
        except OSError as error:
            raise store_error(error, f"{note} cannot be written") from error

    def is_known(self, key: str) -> bool:
        """Whether the layer with this TOC was built before, on any layers."""
        return self._note(key).exists()

    def _note(self, key: str) -> Path:
        return self._folder / f"{WRITER_VERSION}-{key}.layer"


def _touch(image: Path) -> bool:
    """Whether the image exists. Updates its mtime: the store evicts the oldest first."""
    try:
        os.utime(image)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(error, f"the metadata image {image} cannot be used") from error
    return True


def _name(layer: LayerMetadata, inherited: dict[bytes, Entry]) -> str:
    """The file name of a layer's image. An inherited entry counts even if it is plain: whether the directory exists below decides about
    whiteouts in it. The root always exists."""
    facts = sorted((path, entry) for path, entry in inherited.items() if path or entry != _PLAIN_ROOT)
    if not facts:
        return f"{WRITER_VERSION}-{layer.key}"
    return f"{WRITER_VERSION}-{hashlib.sha256(f'sha256:{layer.key}'.encode() + msgspec.json.encode(facts)).hexdigest()}"
