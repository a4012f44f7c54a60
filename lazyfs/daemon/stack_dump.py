"""SIGUSR1 has lazyfsd write what each of its threads and tasks is doing into its log: for a process that hangs, and goes on hanging.

The main thread's stack is written by faulthandler, in the signal handler itself: even where it waits in C and never comes back. All
threads' and tasks' come after it, when the main thread is in Python again, and holds the interpreter. Not before: faulthandler can walk
the others' stacks, too, but those go on meanwhile, and one that returns from a call just then ends the process (1 of 40 signals).
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
    """From now on, in this process."""
    signal.signal(signal.SIGUSR1, _write_all)  # first: faulthandler calls who was there before
    faulthandler.register(signal.SIGUSR1, all_threads=False, chain=True)


def describe_tasks(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """Lines: a task, where it waits, outermost call first, and its children."""
    indent = "  " * depth
    yield f"{indent}{task.name}"
    for frame, line in task.iter_await_frames():
        if not frame.f_globals.get("__name__", "").startswith("trio._core"):  # where everybody waits
            yield f"{indent}  | {_location(frame, line)}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from describe_tasks(child, depth + 1)


def _write_all(_: int, interrupted: FrameType | None) -> None:
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        root = None  # trio does not run yet, or any more
    lines = [*_describe_threads(interrupted), "tasks:", *(describe_tasks(root) if root is not None else ["none"]), ""]
    os.write(2, "\n".join(lines).encode(errors="replace"))


def _describe_threads(interrupted: FrameType | None) -> Iterator[str]:
    """Lines: each thread, and where it is, outermost call first. `interrupted` is where this one was."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001  there is no other name for it
        yield f"thread {names.get(ident, ident)}:"
        stack = traceback.walk_stack(interrupted if ident == threading.get_ident() else frame)
        for at, line in reversed(list(stack)):
            yield f"  | {_location(at, line)}"


def _location(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"
