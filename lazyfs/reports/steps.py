"""What lazyfsd reports while it carries an order out.

No report has a tag: earlier versions tell them apart by the names of their fields, and so does wire.py.
"""

from __future__ import annotations

import msgspec


class Note(msgspec.Struct, frozen=True):
    """A line for the user."""

    note: str


class Accepted(msgspec.Struct, frozen=True):
    """The first report of a pull. Until it arrives, the client may carry the order out itself."""

    accepted: bool = True


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far one task has come."""

    task: str
    done_bytes: int
    total: int
    trouble: str = ""
    """Why it makes no progress; empty while it does."""


Step = Note | Accepted | Progress
