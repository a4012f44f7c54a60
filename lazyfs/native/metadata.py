"""The EROFS images of a stack of layers: found where they were built before, built where not.

In STORE/erofs:

    VERSION-HEX           an image; VERSION is the writer's, HEX the layer's TOC digest (format/dialects.py). Where directories that the layer implies take
                          attributes from the layers below, HEX is a hash of both: the layer has another image on other layers
    VERSION-HEX.layer     what the layer with the TOC digest HEX needs from below (`NeededBelow`, as JSON): with it, the names of a
                          stack's images are known without reading a TOC

Each is a function of what names it, complete and durable from the moment it has its name, and built anew when it was removed.
Most layers imply one directory, their root: where that is a plain 0755 below, they share their image with every other stack.
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
    """Which document says what a layer holds."""

    toc_digest: Digest
    """Its TOC's, which the store has among its documents; for a layer that is not lazy the one of our own making."""
    toc_offset: int
    arrived: int | None = None
    """Bytes of the compressed TOC; None for a TOC that was parsed and accepted before."""
    dialect: str = ESTARGZ.name

    @property
    def key(self) -> str:
        """What names of files have in them that are made of this TOC."""
        return toc_key(self.toc_digest, self.dialect)


def ensure_metadata(store_directory: Path, layers: Sequence[LayerMetadata | Path]) -> tuple[Path, ...]:
    """Blocking. The images of a stack of `layers`, both lowest first; the stack begins with the topmost layer whose root is opaque.

    A layer that is a Path is a directory, which somebody else has unpacked: it is its own image.

    What is missing is built, by one process a CPU at the most; 0.1 ms a layer where nothing is. Raises InvalidToc for what no
    EROFS image can hold, StoreFull, StoreUnusable, LocalError. What was built until then stays.
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
    """The images of a stack whose layers become known one after the other: each is begun when its TOC is there."""

    def __init__(self, store_directory: Path, known: _StackImages | None = None) -> None:
        """`known`: what has been found out already. Raises StoreFull, StoreUnusable."""
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
        """Blocking. What is under way is waited for, what has not been begun is cancelled; no process stays."""
        self._end.close()

    def expect(self, keys: Sequence[str]) -> None:
        """Blocking. Layers with TOCs of these keys will come, and more may: start the processes meanwhile that those take which were never built."""
        unknown = sum(not self._stack.is_known(key) for key in keys)
        count = max(0, min(unknown, self._processors) - self._expected)
        self._expected += count
        self._builders.start(count)

    def add(self, layer: LayerMetadata | Path) -> Future[Path]:
        """The image of the next layer, from the lowest up; it fails as `ensure_metadata`."""
        if isinstance(layer, Path):
            image = Future[Path]()
            image.set_result(layer)
        else:
            # In order: who waits for the images below waits for those that started before it.
            image = self._pool.submit(self._stack.build, layer, tuple(self._images), self._builders)
        self._images.append(image)
        return image


class _StackImages:
    """What is known of the layers of one stack. Raises StoreFull, StoreUnusable."""

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
        """What is known of a layer that was found or built."""
        return self._needed[layer.key]

    def find(self, layer: LayerMetadata, below: Sequence[Path]) -> Path | None:
        """The layer's image on the images `below`; None where something has to be read or built."""
        needed = self._recall(layer)
        if needed is None:
            return None
        image = self._folder / _name(layer, inherited_from(below, needed.implied))
        return image if _touch(image) else None

    def build(self, layer: LayerMetadata, below: Sequence[Future[Path]], builders: Builders) -> Path:
        """The layer's image, found or built, when those below it are there."""
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
            note.unlink(missing_ok=True)  # what is there could not be read
            publish(str(self._folder), note.name, lambda file: file.writelines([msgspec.json.encode(needed)]))
        except OSError as error:
            raise store_error(error, f"{note} cannot be written") from error

    def is_known(self, key: str) -> bool:
        """Whether the layer with this TOC was built before, on whatever."""
        return self._note(key).exists()

    def _note(self, key: str) -> Path:
        return self._folder / f"{WRITER_VERSION}-{key}.layer"


def _touch(image: Path) -> bool:
    """Whether it is there; if so, its time says from now on that it was needed: the store makes room of the oldest first."""
    try:
        os.utime(image)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(error, f"the metadata image {image} cannot be used") from error
    return True


def _name(layer: LayerMetadata, inherited: dict[bytes, Entry]) -> str:
    """Whether a directory is there below at all matters to whiteouts in it; the root always is."""
    facts = sorted((path, entry) for path, entry in inherited.items() if path or entry != _PLAIN_ROOT)
    if not facts:
        return f"{WRITER_VERSION}-{layer.key}"
    return f"{WRITER_VERSION}-{hashlib.sha256(f'sha256:{layer.key}'.encode() + msgspec.json.encode(facts)).hexdigest()}"
