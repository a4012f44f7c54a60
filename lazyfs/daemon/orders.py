"""What a client asks of lazyfsd, and what it hears back: one JSON value a line, over a unix socket.

A client sends one order and reads reports until one has `done`, or `error` with the exit code that it stands for. A
connection that ends before that is a daemon that died: the order may be sent again, since each is idempotent (a mount
order by its ticket).
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from lazyfs.errors import LazyfsError

MAX_ORDER: Final = 1 << 20
"""Bytes of an order: bounded before it is read."""

BackgroundMode = Literal["on", "off", "wait"]
Report = dict[str, Any]
"""`{"note": TEXT}` is for the user's eyes; `{"task": TEXT, "done_bytes": N, "total": N}` moves a progress bar;
`{"accepted": true}` is the first report of a pull: before that, who asks may as well do it himself;
`{"done": true, …}` and `{"error": TEXT, "code": EXIT CODE, "unsupported": BOOL}` are the last."""


class MountOrder(msgspec.Struct, frozen=True, tag="mount"):
    """Mount an image natively. Paths are absolute, and as the daemon sees them."""

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
    """Bytes that the store may take from now on; -1 leaves it as it is, 0 is no bound."""


class UnmountOrder(msgspec.Struct, frozen=True, tag="unmount"):
    """Take a native mount away."""

    directory: str
    lazy: bool = False


class StatusOrder(msgspec.Struct, frozen=True, tag="status"):
    """Tell the state of one native mount, or of all (`directory` empty), and of the daemon."""

    directory: str = ""


class PruneOrder(msgspec.Struct, frozen=True, tag="prune"):
    """Make room: what no mounted image needs, or of that only what arrived more than `older_than` seconds ago."""

    everything: bool = False
    """What mounted images have as well: they fetch it again."""
    older_than: float = 0.0


class PullOrder(msgspec.Struct, frozen=True, tag="pull"):
    """Pull an image into a containerd, with what root's docker configuration has for its registry. See lazyfs/pull/pull.py."""

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


class Refused(LazyfsError):
    """An error that the daemon told: its text is complete, its exit code the daemon's."""

    def __init__(self, text: str, code: int, *, unsupported: bool = False) -> None:
        super().__init__(text)
        self.exit_code = code  # type: ignore[misc]  # the daemon's class, seen from here
        self.unsupported = unsupported
        """This machine cannot mount natively: a portable mount may do."""


def encode(message: Order | Report) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def decode_order(line: bytes) -> Order:
    """Raises msgspec.DecodeError for what is no order of this version."""
    order: Order = msgspec.json.decode(line, type=Order)
    return order
