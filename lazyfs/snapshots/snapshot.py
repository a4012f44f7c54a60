"""A snapshot of containerd: a directory's worth of one layer, and whose child it is.

Source: containerd, core/snapshots/snapshotter.go. Active snapshots are written to, views are looked at, committed ones are what
others stand on. A committed snapshot that was never unpacked has a LazyLayer instead of a directory full of files.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from lazyfs.format.digest import Digest
from lazyfs.format.estargz import ESTARGZ

Kind = Literal["active", "view", "committed"]
"""As containerd's filters spell it."""
_SHOWN: Final = 200
"""Characters: a status of gRPC travels in a header, which clients refuse over 8 KiB, and a character may take 12 bytes there."""


class LazyLayer(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that it takes to mount a layer without asking anybody. JSON in the database: a field that a later version adds has a
    default.
    """

    reference: str
    """Where its blob is: `docker://HOST/REPO`."""
    digest: Digest
    """The blob's."""
    size: int
    """The blob's, bytes."""
    media_type: str
    toc_digest: Digest
    toc_offset: int
    """Where in the blob its chunks end: for eStargz, where the TOC begins."""
    dialect: str = ESTARGZ.name
    """The name of its dialect. Not in the rows of earlier versions, which knew no other."""


class Snapshot(msgspec.Struct, frozen=True):
    """One snapshot, as it was when it was looked at."""

    id: int
    """Its directory's name. Stays when it is committed, and is never another's."""
    key: str
    """What containerd calls it; another name once it is committed."""
    parent: str
    """The key of the committed snapshot that it stands on; `""` for a base."""
    kind: Kind
    labels: dict[str, str]
    created_ns: int
    """Since the epoch. Of a committed snapshot: when it was committed."""
    updated_ns: int
    inodes: int = 0
    """Of a committed snapshot: what it takes on disk. 0 for a lazy one."""
    size: int = 0
    """Bytes."""
    lazy: LazyLayer | None = None
    reason: str = ""
    """Why a layer that containerd wanted lazy is not."""
    session: str = ""
    """The process that made or committed it."""
    was: str = ""
    """Of a committed one: its key while it was active."""


def shown(key: str) -> str:
    """A key as messages name it: on one line, and cut where it is very long."""
    return repr(key) if len(key) <= _SHOWN else f"{key[:_SHOWN]!r}…"
