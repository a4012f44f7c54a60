"""How orders and reports travel between a client and lazyfsd: one JSON object a line.

A client sends one order, then reads reports until the last one. A result has `"done": true`; a refusal has `error` and the client's exit
code; anything else is a step. When lazyfs is upgraded under a running daemon, clients and daemons of different versions meet: so no field
changes its name or meaning, and a report of an unknown shape is skipped.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

import msgspec

from lazyfs.errors import LazyfsError, LocalError
from lazyfs.reports.orders import Order
from lazyfs.reports.results import MountResult, PortableResult, PruneResult, PullResult, UnmountResult
from lazyfs.reports.status import ServiceStatus
from lazyfs.reports.steps import Accepted, Note, Progress, Step

MAX_ORDER: Final = 1 << 20
"""Bytes of an order, checked while it is read."""

Result = MountResult | UnmountResult | PruneResult | PullResult | ServiceStatus
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class HasResult(Protocol[R_co]):
    """An order, which knows the type of its result."""

    @property
    def result(self) -> type[R_co]:
        """The type of the last report."""


class Refused(LazyfsError):
    """An error that the daemon reported, with the daemon's text and exit code."""

    def __init__(self, text: str, code: int, *, unsupported: bool = False) -> None:
        super().__init__(text)
        self.exit_code = code  # type: ignore[misc]  # that of the error in the daemon
        self.unsupported = unsupported
        """This machine cannot mount natively; a portable mount may work."""


class Refusal(msgspec.Struct, frozen=True):
    """The last report of an order that failed."""

    error: str
    code: int
    """The client's exit code."""
    unsupported: bool = False
    """This machine cannot mount natively."""


class _Shape(msgspec.Struct):
    """The fields by which reports are distinguished, and those of steps."""

    error: str | None = None
    code: int = 1
    unsupported: bool = False
    done: bool = False
    note: str | None = None
    accepted: bool = False
    task: str | None = None


def encode(message: object) -> bytes:
    """The line of an order, a step or a refusal."""
    return msgspec.json.encode(message) + b"\n"


def encode_result(result: Result | PortableResult) -> bytes:
    """The line of a result."""
    return msgspec.json.encode({**msgspec.to_builtins(result), "done": True}) + b"\n"


def decode_order(line: bytes) -> Order:
    """Raises msgspec.DecodeError for anything that is not an order of this version."""
    order: Order = msgspec.json.decode(line, type=Order)
    return order


def decode_report(line: bytes, result: type[R]) -> Step | R | None:
    """A step, or the last report as a `result`; None for an unknown step.

    Raises Refused for a refusal, LocalError for a line that this version cannot read.
    """
    try:
        shape = msgspec.json.decode(line, type=_Shape)
        if shape.error is not None:
            raise Refused(shape.error, shape.code, unsupported=shape.unsupported)
        if shape.done:
            return msgspec.json.decode(line, type=result)
        if shape.note is not None:
            return Note(shape.note)
        if shape.task is not None:
            return msgspec.json.decode(line, type=Progress)
        return Accepted() if shape.accepted else None
    except msgspec.DecodeError as error:
        raise LocalError(
            f"lazyfsd's report cannot be read: {error}",
            hint="It is of another version: restart it, or use the lazyfs that it came with",
        ) from error
