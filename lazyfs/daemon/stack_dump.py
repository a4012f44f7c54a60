"""On SIGUSR1, lazyfsd writes the stacks of all its threads and tasks to its log: for a process that hangs.

faulthandler writes the main thread's stack in the signal handler itself, even if that thread blocks in C and never returns. The stacks of all
threads and tasks follow when the main thread runs Python code again, and so holds the interpreter lock. Not before: faulthandler can walk
the stacks of other threads, but they run meanwhile, and one that returns from a call just then crashes the process (1 of 40 signals).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

import trio


def dump_stacks_on_signal() -> None:
    """Install the signal handlers in this process."""
    signal.signal(signal.SIGUSR1, _write_all)  # first: faulthandler chains to the previous handler
    faulthandler.register(signal.SIGUSR1, all_threads=False, chain=True)


def describe_tasks(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """The lines of a task: where it waits, outermost call first, and its children."""
    indent = "  " * depth
    yield f"{indent}{task.name}"
    for frame, line in task.iter_await_frames():
        if not frame.f_globals.get("__name__", "").startswith("trio._core"):  # the same for all tasks
            yield f"{indent}  | {_location(frame, line)}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from describe_tasks(child, depth + 1)


def _write_all(_: int, interrupted: FrameType | None) -> None:
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        root = None  # trio is not running
    lines = [*_describe_threads(interrupted), "tasks:", *(describe_tasks(root) if root is not None else ["none"]), ""]
    os.write(2, "\n".join(lines).encode(errors="replace"))


def _describe_threads(interrupted: FrameType | None) -> Iterator[str]:
    """The lines of each thread, outermost call first. `interrupted` is the frame of this thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001  there is no other name for it
        yield f"thread {names.get(ident, ident)}:"
        stack = traceback.walk_stack(interrupted if ident == threading.get_ident() else frame)
        for at, line in reversed(list(stack)):
            yield f"  | {_location(at, line)}"


def _location(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"
