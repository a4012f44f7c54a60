"""A snapshot of containerd: the files of one layer, on top of its parent.

Source: containerd, core/snapshots/snapshotter.go. Active snapshots are writable, views read-only, committed ones are the parents of others.
A committed snapshot that was never unpacked has a LazyLayer instead of a directory of files.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from lazyfs.format.digest import Digest
from lazyfs.format.estargz import ESTARGZ

Kind = Literal["active", "view", "committed"]
"""As in containerd's filters."""
_SHOWN: Final = 200
"""Characters: clients refuse a gRPC status in a header over 8 KiB, and a character may take 12 bytes there."""


class LazyLayer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is needed to mount a layer without the registry. JSON in the database: fields added by later versions have defaults."""

    reference: str
    """Where its blob is: `docker://HOST/REPO`."""
    digest: Digest
    """The blob's."""
    size: int
    """Bytes of the blob."""
    media_type: str
    toc_digest: Digest
    toc_offset: int
    """Where the chunks end in the blob: for eStargz, where the TOC begins."""
    dialect: str = ESTARGZ.name
    """The name of its dialect. Rows of earlier versions lack it: they are eStargz."""


class Snapshot(msgspec.Struct, frozen=True):
    """One row of the database."""

    id: int
    """Its directory's name. Unchanged by a commit, and never reused."""
    key: str
    """containerd's name for it; a commit changes it."""
    parent: str
    """The key of its parent, a committed snapshot; `""` for a base."""
    kind: Kind
    labels: dict[str, str]
    created_ns: int
    """Since the epoch. Of a committed snapshot: when it was committed."""
    updated_ns: int
    inodes: int = 0
    """Disk usage of a committed snapshot; 0 for a lazy one."""
    size: int = 0
    """Bytes."""
    lazy: LazyLayer | None = None
    reason: str = ""
    """Why the layer is not lazy although containerd wanted it so."""
    session: str = ""
    """The process that created or committed it."""
    was: str = ""
    """Of a committed snapshot: its key while it was active."""


def shown(key: str) -> str:
    """A key for a message: on one line, and cut if it is very long."""
    return repr(key) if len(key) <= _SHOWN else f"{key[:_SHOWN]!r}…"
