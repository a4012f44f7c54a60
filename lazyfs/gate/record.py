"""The record of a mount: what it touched, in the order of the first touch. `lazyfs convert --prioritize` orders a layer by it.

The gate sees objects, not paths. An object that several files consist of is written under the paths of all of them: their bytes
are the same, and nobody knows which one was meant. A path that an upper layer hides is left out: it would lead to another file.

The format is that of ctr-remote's record (stargz-snapshotter, recorder/recorder.go): one JSON object per line. What is not
UTF-8 becomes U+FFFD, as it does there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from lazyfs.errors import LocalError
from lazyfs.format.entry import OPAQUE_MARKER, OWN_NAMES, WHITEOUT_PREFIX, Entry, base_of, parent_of
from lazyfs.image.image import Image
from lazyfs.store.content import content_of


class _Line(msgspec.Struct, frozen=True, rename="camel"):
    path: str
    manifest_digest: str
    layer_index: int


class Recorder:
    """One recording. For the event loop, except `write`, which runs in a thread once nothing is touched any more."""

    def __init__(self, image: Image, read_entries: Callable[[], Sequence[Sequence[Entry]]]) -> None:
        """`read_entries` reads the entries of the image's layers, lowest first. They are not kept in memory, because mounts
        live long."""
        self._digest = image.digest
        self._read_entries = read_entries
        self._touched: dict[str, None] = {}

    def touch(self, name: str) -> None:
        """An object was looked up."""
        self._touched[name] = None

    def write(self, path: Path) -> None:
        """Write the record to `path`, completely or not at all. Blocking; some seconds for a large image. Raises LocalError,
        and what reading the entries raises."""
        lines = [
            msgspec.json.encode(_Line(name.decode("utf-8", "replace"), self._digest, index)) + b"\n"
            for index, name in paths_of(tuple(self._touched), self._read_entries())
        ]
        try:
            _replace(path, b"".join(lines))
        except OSError as error:
            raise LocalError(f"cannot write the record {path}: {error.strerror}") from error


def paths_of(objects: Sequence[str], layers: Sequence[Sequence[Entry]]) -> list[tuple[int, bytes]]:
    """(layer number, path) of every visible file that consists of one of `objects`, in the order of `objects`.

    `layers` are those of an image, lowest first. Costs about 5 µs an entry.
    """
    found: dict[str, list[tuple[int, bytes]]] = {name: [] for name in objects}
    cover = _Cover()
    for index in reversed(range(len(layers))):
        for name, entry in _files(layers[index]):
            places = found.get(content_of(entry.chunks).name)
            if places is not None and not cover.hides(name):
                places.append((index, name))
        cover.add(layers[index])
    return [place for places in found.values() for place in places]


def _files(entries: Sequence[Entry]) -> Iterator[tuple[bytes, Entry]]:
    """(path, the entry with its bytes) of every non-empty file of a layer; hard links under their own names."""
    named = {entry.name: entry for entry in entries if entry.chunks}
    for entry in entries:
        target = named.get(entry.link if entry.type == "hardlink" else entry.name)
        if target is not None and entry.name not in OWN_NAMES:
            yield entry.name, target


class _Cover:
    """What the layers above hide."""

    def __init__(self) -> None:
        self._named: set[bytes] = set()
        """Names that hide a file of the same name, including implied directories."""
        self._ends: set[bytes] = set()
        """Names below which nothing is visible: whiteouts, and everything that is not a directory."""
        self._opaque: set[bytes] = set()

    def add(self, entries: Sequence[Entry]) -> None:
        """Add the next lower layer."""
        for entry in entries:
            base, parent = base_of(entry.name), parent_of(entry.name)
            if base == OPAQUE_MARKER:
                self._opaque.add(parent)
            elif base.startswith(WHITEOUT_PREFIX):
                self._ends.add((parent + b"/" if parent else b"") + base.removeprefix(WHITEOUT_PREFIX))
            else:
                self._named.add(entry.name)
                if entry.type != "dir":
                    self._ends.add(entry.name)
                while parent and parent not in self._named:
                    self._named.add(parent)
                    parent = parent_of(parent)

    def hides(self, name: bytes) -> bool:
        """Whether a file below these layers is hidden."""
        if name in self._named or name in self._ends:
            return True
        while name:
            name = parent_of(name)
            if name in self._opaque or name in self._ends:
                return True
        return False


def _replace(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably, with the mode of an ordinary file. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=".lazyfs-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
