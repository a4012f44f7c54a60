"""What a layer holds, one value an entry: the shape that a TOC, a tar and (later) an EROFS image share.

Names are bytes, because a tar's are. They are clean: relative, no empty, `.` or `..` component, no trailing slash,
`b""` for the layer's root. Whiteouts are ordinary entries here (`.wh.NAME`); what they do is the merge's business
(lazyfs/vfs), because it needs the layers below.
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
"""Root-level names that belong to the format and are never shown."""


KEPT_OWNER: Final = 0xFFFFFFFF
"""A user or group that chown(2) leaves as it is: of an entry that a tar was read for, and that has not been placed (layertar/layer_index.py)."""


def owner_id(number: int) -> int:
    """Whom the kernel takes `number`, from a tar or a TOC, for: its lowest 32 bits. They may be KEPT_OWNER."""
    return number & 0xFFFFFFFF


def with_owner(entry: Entry, below: Entry | None = None) -> Entry:
    """`entry` as it belongs to somebody: where it keeps the owner, to that of `below`, the directory in whose place it is put, else to root,
    who unpacks it."""
    if KEPT_OWNER not in (entry.uid, entry.gid):
        return entry
    uid, gid = (below.uid, below.gid) if below is not None and below.type == entry.type == "dir" else (0, 0)
    return msgspec.structs.replace(
        entry, uid=uid if entry.uid == KEPT_OWNER else entry.uid, gid=gid if entry.gid == KEPT_OWNER else entry.gid
    )


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A piece of a file that can be fetched and verified alone.

    The bytes of the chunk are `[inner, inner + size)` of what the gzip member at blob offset `member` inflates to.
    `member_end` is the blob offset of the next member that holds data (or of the TOC): the compressed bytes lie in
    `[member, member_end)`, though less may do.
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
    """Permission bits, suid, sgid, sticky; no file type."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    """Bytes, of a regular file; 0 for all else."""
    link: bytes = b""
    """A symbolic link's target, verbatim; a hard link's target, a clean name in the same layer."""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Sorted by key, each key once."""
    chunks: tuple[Chunk, ...] = ()
    """Of a regular file, in order and without a gap; empty when it is empty, and in entries read from a tar."""


def parent_of(name: bytes) -> bytes:
    """The clean name of the directory that holds `name`; `b""` for entries of the root."""
    return name.rpartition(b"/")[0]


def base_of(name: bytes) -> bytes:
    """The last component of a clean name."""
    return name.rpartition(b"/")[2]
