"""Stacks made by hand, out of entries and bytes: what lazyfsd mounts, without lazyfsd, gate, store or image."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from lazyfs.erofs.image import write_image
from lazyfs.format.entry import Chunk, Entry
from lazyfs.kernel.mountinfo import mounts
from lazyfs.kernel.mounting import unmount
from lazyfs.native.layers import LayerMounts
from lazyfs.native.stack import mount_stack, open_stack, source_of, unmount_stack
from lazyfs.store.content import content_of
from tests.commands import run


def regular(name: bytes, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file of one chunk; `Layers.add` knows its bytes by its digest."""
    chunks = (Chunk(0, len(data), hashlib.sha256(data).digest(), 0, 0, 1),) if data else ()
    return Entry(name, "reg", mode=mode, size=len(data), chunks=chunks)


class Workshop:
    """A directory laid out as a store is, and the mounts over it. What is still mounted at the end is a failure of the test."""

    def __init__(self, store: Path) -> None:
        self.store, self.at = store, store / "at"
        self.data = tuple(store / name for name in ("objects", "gate", "arrived"))
        for folder in (*self.data, store / "erofs", self.at):
            folder.mkdir(parents=True)
        self.layers = LayerMounts(store)

    def image(self, name: str, files: Mapping[bytes, bytes] = MappingProxyType({}), others: Sequence[Entry] = ()) -> Path:
        """The EROFS image of a layer of regular files and other entries; the files' bytes become objects."""
        path = self.store / "erofs" / name
        with path.open("wb") as file:
            write_image([*others, *(regular(file_name, data) for file_name, data in files.items())], file)
        for data in files.values():
            self.keep(data)
        return path

    def keep(self, data: bytes) -> str:
        """Make bytes an object with both of its names; the name."""
        name = content_of(regular(b"", data).chunks).name
        objects, _, arrived = self.data
        if not (objects / name).exists():
            (objects / name).write_bytes(data)
            os.link(objects / name, arrived / name)
        return name

    @contextmanager
    def mounted(self, images: Sequence[Path], **more: object) -> Iterator[Path]:
        """The overlay of `images`, lowest first; what of it was not unmounted inside is unmounted."""
        mount_stack(self.at, open_stack(self.layers.mounted(images).roots, self.data, source=source_of("test"), **more))  # type: ignore[arg-type]
        try:
            yield self.at
        finally:
            with suppress(OSError):
                unmount_stack(self.at, lazy=True)
            self.layers.unmount_unused()

    def left(self) -> list[str]:
        """Mounts and loop devices that belong to this place."""
        inside = [str(mount.path) for mount in mounts() if self.store in mount.path.parents]
        loops = run("losetup", "--list", "--noheadings", "--output", "BACK-FILE").stdout.decode().splitlines()
        return inside + [line for line in loops if str(self.store) in line]


@contextmanager
def workshop(folder: Path) -> Iterator[Workshop]:
    """A workshop in a new directory under `folder`; nothing stays mounted there, whatever fails."""
    place = Path(tempfile.mkdtemp(prefix="lazyfs-stack-", dir=folder))
    made = Workshop(place)
    try:
        yield made
    finally:
        for mount in reversed(mounts()):
            if place in mount.path.parents:
                unmount(mount.path, lazy=True)
        shutil.rmtree(place)
