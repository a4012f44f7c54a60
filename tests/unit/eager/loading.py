"""Ordinary images in memory, and their layers loaded into a store."""

from __future__ import annotations

import os

from lazyfs.eager.image import load_image_layers
from lazyfs.fetch.background import measure_missing
from lazyfs.fetch.piece import LayerBlob
from lazyfs.format.entry import Entry
from lazyfs.format.platform import Platform
from lazyfs.image.image import resolve_image
from lazyfs.image.layer import Layer
from lazyfs.reports.steps import Note, Progress
from lazyfs.store.content import content_of
from lazyfs.store.store import Store
from tests.unit.converter.making import Item
from tests.unit.converter.places import MemoryRepository

LINUX = Platform("linux", "amd64")
LARGE = os.urandom(9 << 20)
BASE: list[Item] = [
    (Entry(b"usr", "dir", 0o711), b""),
    (Entry(b"usr/lib", "dir", 0o700, 33), b""),
    (Entry(b"usr/lib/large", "reg", size=len(LARGE)), LARGE),
    (Entry(b"lib", "symlink", link=b"usr/lib"), b""),
    (Entry(b"old", "reg", size=3), b"old"),
    (Entry(b"empty", "reg"), b""),
]
APP: list[Item] = [
    (Entry(b".wh.old", "reg"), b""),
    (Entry(b"lib/app", "reg", 0o4755, size=5), b"hello"),
    (Entry(b"link", "hardlink", link=b"lib/app"), b""),
]


class Reports(list[Note | Progress]):
    """The progress reports."""

    async def __call__(self, report: Note | Progress) -> None:
        self.append(report)

    @property
    def notes(self) -> list[str]:
        return [report.note for report in self if isinstance(report, Note)]

    @property
    def bars(self) -> dict[str, tuple[int, int]]:
        """Where each bar ended, and where it should."""
        return {report.task: (report.done_bytes, report.total) for report in self if isinstance(report, Progress)}


async def load(
    place: MemoryRepository, store: Store, reports: Reports | None = None, *, lazy_only: bool = False
) -> tuple[Layer, ...]:
    """The layers of `v1`."""
    image = await resolve_image(place, "v1", LINUX, store)
    place.done.clear()
    return await load_image_layers(
        place, store, image, lazy_only=lazy_only, progress=reports if reports is not None else Reports()
    )


def content(store: Store, entry: Entry) -> bytes:
    """A file's bytes, as the store has them."""
    if not entry.chunks:
        return b""
    content = content_of(entry.chunks)
    parts = [store.read(content, number, 0, content.chunk_size(number)) for number in range(len(content.digests))]
    return b"".join(part or b"<missing>" for part in parts)


def here(store: Store, layers: tuple[Layer, ...]) -> bool:
    """Whether every file is in the store."""
    return not measure_missing(store, [LayerBlob.of(layer) for layer in layers]).chunks


def kept(store: Store) -> set[str]:
    """What is published."""
    return {path.name for folder in ("objects", "partial") for path in (store.directory.path / folder).iterdir()}


def asks_for_layers(place: MemoryRepository) -> list[str]:
    return [what for what in place.done if what.startswith("read")]
