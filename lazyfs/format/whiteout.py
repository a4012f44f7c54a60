"""Names that begin with `.wh.`: what they say, and which entries of a layer nobody shows because of them.

    .wh.NAME                  a whiteout: hides NAME of the layers below. Only its name counts; its type, link and data do not
    .wh..wh..opq              hides all that the layers below have in this directory
    .wh..wh.* in the root     metadata that AUFS keeps of a branch: not part of the image, with everything below it. A hard link to a
                              file in `/.wh..wh.plnk` is that file
    anything below .wh.*      is left out

Source: the OCI image specification, layer.md; for AUFS Docker's reader (moby, pkg/archive/diff.go). containerd and umoci know no AUFS:
they show `/.wh..wh.plnk`, and both show what lies below a whiteout's name, in a directory of that name. Only the latter can be part of
an image that somebody made on purpose, so it is noted.
"""

from __future__ import annotations

from typing import Final, Literal

from lazyfs.errors import show
from lazyfs.format.entry import OPAQUE_MARKER, WHITEOUT_PREFIX, Entry, EntryType, base_of

AUFS_PREFIX: Final = b".wh..wh."
_AUFS_LINKS: Final = b".wh..wh.plnk"
_DEVICE_MAJOR: Final = 0xFFF
_DEVICE_MINOR: Final = 0xFFFFF

Place = Literal["shown", "whiteout", "aufs", "below"]


def place_of(name: bytes) -> Place:
    """Which line of the table above a clean name belongs to; `shown` where none says anything about it."""
    if WHITEOUT_PREFIX not in name:
        return "shown"
    if name.startswith(AUFS_PREFIX) and name.partition(b"/")[0] != OPAQUE_MARKER:
        return "aufs"
    parent, _, base = name.rpartition(b"/")
    if parent.startswith(WHITEOUT_PREFIX) or b"/" + WHITEOUT_PREFIX in parent:
        return "below"
    return "whiteout" if base.startswith(WHITEOUT_PREFIX) else "shown"


def whiteout(entry: Entry) -> Entry:
    """A whiteout with nothing but what counts: a name. AUFS writes them as hard links to a file that is not in the image."""
    return Entry(entry.name, "reg", entry.mode, entry.uid, entry.gid, entry.mtime_ns)


def link_key(name: bytes) -> bytes:
    """What a file that is not shown is found by when a hard link names it. As in Docker, only the base name counts for AUFS' links."""
    return _AUFS_LINKS + b"/" + base_of(name) if name.startswith(_AUFS_LINKS) else name


def device_of(entry: Entry) -> tuple[int, int]:
    """(major, minor) as far as mknod(2) keeps them: 12 and 20 bits."""
    return entry.major & _DEVICE_MAJOR, entry.minor & _DEVICE_MINOR


def is_whiteout_device(kind: EntryType, major: int, minor: int) -> bool:
    """Whether this is a character device 0:0, which overlayfs takes for a whiteout in any layer: it cannot be shown as a device."""
    return kind == "char" and not major & _DEVICE_MAJOR and not minor & _DEVICE_MINOR


class LeftOut:
    """Entries that a reader of a layer has left out."""

    __slots__ = ("aufs", "below", "first")

    def __init__(self) -> None:
        self.aufs = 0
        """AUFS' metadata, which no runtime shows."""
        self.below = 0
        """Below names that begin with `.wh.`: a full pull shows them."""
        self.first = b""
        """The first one of those."""

    def __bool__(self) -> bool:
        return bool(self.aufs or self.below)

    def add(self, name: bytes, place: Place) -> None:
        """Count an entry that is `aufs` or `below`."""
        if place == "aufs":
            self.aufs += 1
            return
        self.first = self.first or name
        self.below += 1

    @property
    def note(self) -> str:
        """What a user should know of the layer; empty where a full pull shows no more than we do."""
        if not self.below:
            return ""
        entries = "one entry" if self.below == 1 else f"{self.below} entries"
        return f"left out {entries} below names that begin with .wh., which a full pull shows: {show(self.first)}"
