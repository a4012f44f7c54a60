"""What lazyfsd reports while it executes an order.

Reports have no tag: earlier versions distinguish them by their field names, and so does wire.py.
"""

from __future__ import annotations

import msgspec


class Note(msgspec.Struct, frozen=True):
    """A line for the user."""

    note: str


class Accepted(msgspec.Struct, frozen=True):
    """The first report of a pull. Until it arrives, the client may execute the order itself."""

    accepted: bool = True


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """The progress of one task."""

    task: str
    done_bytes: int
    total: int
    trouble: str = ""
    """Why it makes no progress; empty if it does."""


Step = Note | Accepted | Progress
