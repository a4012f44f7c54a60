"""The entries of a layer: the form that TOCs, tars and EROFS images are read into and written from.

Names are bytes, because a tar's are. They are clean: relative, no empty, `.` or `..` component, no trailing slash,
`b""` for the layer's root. Whiteouts are ordinary entries here (`.wh.NAME`); applying them needs the layers below,
so the merge does it (lazyfs/vfs).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

EntryType = Literal["dir", "reg", "symlink", "hardlink", "char", "block", "fifo"]

WHITEOUT_PREFIX: Final = b".wh."
OPAQUE_MARKER: Final = b".wh..wh..opq"
TOC_NAME: Final = b"stargz.index.json"
PREFETCH_LANDMARK: Final = b".prefetch.landmark"
NO_PREFETCH_LANDMARK: Final = b".no.prefetch.landmark"
LANDMARK_CONTENT: Final = b"\x0f"
OWN_NAMES: Final = frozenset({TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK})
"""Names in the root that belong to the format and are never shown."""


KEPT_OWNER: Final = 0xFFFFFFFF
"""The user or group that chown(2) leaves unchanged. Only in entries read from a tar, until they are placed (layertar/layer_index.py)."""


def owner_id(number: int) -> int:
    """The id that the kernel makes of `number` in a tar or TOC: its lowest 32 bits, which may be KEPT_OWNER."""
    return number & 0xFFFFFFFF


def with_owner(entry: Entry, below: Entry | None = None) -> Entry:
    """`entry` with a real owner: KEPT_OWNER becomes the owner of `below`, the directory that it replaces, or else root, who unpacks."""
    if KEPT_OWNER not in (entry.uid, entry.gid):
        return entry
    uid, gid = (below.uid, below.gid) if below is not None and below.type == entry.type == "dir" else (0, 0)
    return msgspec.structs.replace(
        entry, uid=uid if entry.uid == KEPT_OWNER else entry.uid, gid=gid if entry.gid == KEPT_OWNER else entry.gid
    )


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A part of a file that is fetched and verified on its own.

    The bytes of the chunk are `[inner, inner + size)` of what the gzip member at blob offset `member` inflates to.
    `member_end` is the blob offset of the next member that holds data (or of the TOC): the compressed bytes lie in
    `[member, member_end)`, and may be fewer.
    """

    file_offset: int
    size: int
    digest: bytes
    """sha256 of the chunk's bytes, 32 raw bytes."""
    member: int
    inner: int
    member_end: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of a layer."""

    name: bytes
    type: EntryType
    mode: int = 0o755
    """Permission bits, setuid, setgid, sticky; not the file type."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    """Bytes of a regular file; 0 for everything else."""
    link: bytes = b""
    """A symbolic link's target, verbatim; a hard link's target, a clean name in the same layer."""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Sorted by key, each key once."""
    chunks: tuple[Chunk, ...] = ()
    """Of a regular file, in order and without gaps. Empty for an empty file and in entries read from a tar."""


def parent_of(name: bytes) -> bytes:
    """The clean name of the directory that holds `name`; `b""` for entries of the root."""
    return name.rpartition(b"/")[0]


def base_of(name: bytes) -> bytes:
    """The last component of a clean name."""
    return name.rpartition(b"/")[2]
