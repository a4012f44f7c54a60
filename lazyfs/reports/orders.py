"""What a client asks of lazyfsd: one JSON object a line, over a unix socket.

A client sends one order and reads reports until the last one (wire.py). A connection that ends before that is a daemon that died: the
order may be sent again, since each is idempotent (a mount order by its ticket).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from lazyfs.reports.results import MountResult, PruneResult, PullResult, UnmountResult
from lazyfs.reports.status import ServiceStatus

BackgroundMode = Literal["on", "off", "wait"]


class MountOrder(msgspec.Struct, frozen=True, tag="mount"):
    """Mount an image natively. Paths are absolute, and as the daemon sees them."""

    result: ClassVar[type[MountResult]] = MountResult
    ticket: str
    """Random: tells an order that is sent again from another one for the same directory."""
    reference: str
    directory: str
    platform: str
    """`os/architecture[/variant]`."""
    plain_http: bool = False
    creds: str = ""
    """`USER:PASSWORD`; kept in memory only."""
    background: BackgroundMode = "on"
    upper: str = ""
    """The writable directory; empty for a mount that is read-only."""
    volatile: bool = False
    """The upper directory is thrown away: nothing of it is synced."""
    record: str = ""
    """File to write the files into, in the order of their first touch."""
    lazy_only: bool = False
    store_size: int = -1
    """Bytes that the store may take from now on; -1 leaves it as it is, 0 means no bound."""


class UnmountOrder(msgspec.Struct, frozen=True, tag="unmount"):
    """Take a native mount away."""

    result: ClassVar[type[UnmountResult]] = UnmountResult
    directory: str
    lazy: bool = False


class StatusOrder(msgspec.Struct, frozen=True, tag="status"):
    """Tell the state of one native mount, or of all (`directory` empty), and of the daemon."""

    result: ClassVar[type[ServiceStatus]] = ServiceStatus
    directory: str = ""


class PruneOrder(msgspec.Struct, frozen=True, tag="prune"):
    """Make room: what no mounted image needs, or of that only what arrived more than `older_than` seconds ago."""

    result: ClassVar[type[PruneResult]] = PruneResult
    everything: bool = False
    """What mounted images have as well: they fetch it again."""
    older_than: float = 0.0


class PullOrder(msgspec.Struct, frozen=True, tag="pull"):
    """Pull an image into a containerd, with what root's docker configuration has for its registry. See lazyfs/pull/pull.py."""

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
