"""What a client orders from lazyfsd: one JSON object a line, over a unix socket.

A client sends one order and reads reports until the last one (wire.py). If the connection ends before that, the daemon has died, and the
client sends the order again: each order is idempotent (a mount order by its ticket).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from lazyfs.reports.results import MountResult, PruneResult, PullResult, UnmountResult
from lazyfs.reports.status import ServiceStatus

BackgroundMode = Literal["on", "off", "wait"]


class MountOrder(msgspec.Struct, frozen=True, tag="mount"):
    """Mount an image natively. Paths are absolute, in the daemon's mount namespace."""

    result: ClassVar[type[MountResult]] = MountResult
    ticket: str
    """Random: identifies an order that is sent again."""
    reference: str
    directory: str
    platform: str
    """`os/architecture[/variant]`."""
    plain_http: bool = False
    creds: str = ""
    """`USER:PASSWORD`; kept in memory only."""
    background: BackgroundMode = "on"
    upper: str = ""
    """The writable directory; empty for a read-only mount."""
    volatile: bool = False
    """The upper directory will be removed: nothing in it is synced."""
    record: str = ""
    """The file to write a recording to: the image's files in the order of their first use."""
    lazy_only: bool = False
    store_size: int = -1
    """The limit of the store in bytes; -1 leaves it unchanged, 0 means no limit."""


class UnmountOrder(msgspec.Struct, frozen=True, tag="unmount"):
    """Unmount a native mount."""

    result: ClassVar[type[UnmountResult]] = UnmountResult
    directory: str
    lazy: bool = False


class StatusOrder(msgspec.Struct, frozen=True, tag="status"):
    """Report the status of one native mount, or of all (`directory` empty), and of the daemon."""

    result: ClassVar[type[ServiceStatus]] = ServiceStatus
    directory: str = ""


class PruneOrder(msgspec.Struct, frozen=True, tag="prune"):
    """Remove what no mounted image needs, if it arrived more than `older_than` seconds ago."""

    result: ClassVar[type[PruneResult]] = PruneResult
    everything: bool = False
    """Also remove what mounted images need: they fetch it again."""
    older_than: float = 0.0


class PullOrder(msgspec.Struct, frozen=True, tag="pull"):
    """Pull an image into containerd with the credentials of root's docker configuration. See lazyfs/pull/pull.py."""

    result: ClassVar[type[PullResult]] = PullResult
    reference: str
    platform: str
    """`os/architecture[/variant]`."""
    address: str
    """The path of containerd's socket."""
    namespace: str
    snapshotter: str
    plain_http: bool = False
    complete: bool = False


Order = MountOrder | UnmountOrder | StatusOrder | PruneOrder | PullOrder
