"""Names that begin with `.wh.`: what they mean, and which entries of a layer they keep from being shown.

    .wh.NAME                  a whiteout: hides NAME of the layers below. Only its name counts; its type, link and data do not
    .wh..wh..opq              hides everything that the layers below have in this directory
    .wh..wh.* in the root     AUFS' metadata of a branch, with everything below it: not part of the image. A hard link to a
                              file in `/.wh..wh.plnk` is that file
    anything below .wh.*      is left out

Source: the OCI image specification, layer.md; for AUFS Docker's reader (moby, pkg/archive/diff.go). containerd and umoci do not know
AUFS: they show `/.wh..wh.plnk`, and both show files below a whiteout's name, in a directory of that name. Only the latter can be in an
image on purpose, so lazyfs reports it.
"""

from __future__ import annotations

from typing import Final, Literal

from lazyfs.errors import show
from lazyfs.format.entry import OPAQUE_MARKER, WHITEOUT_PREFIX, Entry, EntryType, base_of

AUFS_PREFIX: Final = b".wh..wh."
_AUFS_LINKS: Final = b".wh..wh.plnk"
_DEVICE_MAJOR: Final = 0xFFF
_DEVICE_MINOR: Final = 0xFFFFF

NameKind = Literal["shown", "whiteout", "aufs", "below"]


def name_kind(name: bytes) -> NameKind:
    """The line of the table above that applies to a clean name; `shown` if none does."""
    if WHITEOUT_PREFIX not in name:
        return "shown"
    if name.startswith(AUFS_PREFIX) and name.partition(b"/")[0] != OPAQUE_MARKER:
        return "aufs"
    parent, _, base = name.rpartition(b"/")
    if parent.startswith(WHITEOUT_PREFIX) or b"/" + WHITEOUT_PREFIX in parent:
        return "below"
    return "whiteout" if base.startswith(WHITEOUT_PREFIX) else "shown"


def whiteout(entry: Entry) -> Entry:
    """A whiteout reduced to its name, which is all that counts. AUFS writes whiteouts as hard links to a file outside the image."""
    return Entry(entry.name, "reg", entry.mode, entry.uid, entry.gid, entry.mtime_ns)


def link_key(name: bytes) -> bytes:
    """The key by which a hard link finds a hidden file. As in Docker, only the base name counts for AUFS' links."""
    return _AUFS_LINKS + b"/" + base_of(name) if name.startswith(_AUFS_LINKS) else name


def device_of(entry: Entry) -> tuple[int, int]:
    """(major, minor) as far as mknod(2) keeps them: 12 and 20 bits."""
    return entry.major & _DEVICE_MAJOR, entry.minor & _DEVICE_MINOR


def is_whiteout_device(kind: EntryType, major: int, minor: int) -> bool:
    """Whether this is a character device 0:0. overlayfs treats it as a whiteout in any layer, so it cannot be shown."""
    return kind == "char" and not major & _DEVICE_MAJOR and not minor & _DEVICE_MINOR


class LeftOut:
    """The entries of a layer that were left out."""

    __slots__ = ("aufs", "below", "first")

    def __init__(self) -> None:
        self.aufs = 0
        """The number of entries of AUFS' metadata."""
        self.below = 0
        """The number of entries below names that begin with `.wh.`. A full pull shows them."""
        self.first = b""
        """The name of the first entry counted in `below`."""

    def __bool__(self) -> bool:
        return bool(self.aufs or self.below)

    def add(self, name: bytes, kind: NameKind) -> None:
        """Count an entry that is `aufs` or `below`."""
        if kind == "aufs":
            self.aufs += 1
            return
        self.first = self.first or name
        self.below += 1

    @property
    def note(self) -> str:
        """The message for the user; empty if a full pull shows no more than lazyfs."""
        if not self.below:
            return ""
        entries = "one entry" if self.below == 1 else f"{self.below} entries"
        return f"left out {entries} below names that begin with .wh., which a full pull shows: {show(self.first)}"
