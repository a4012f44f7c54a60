"""SIGUSR1 has lazyfsd write what each of its threads and tasks is doing into its log: for a process that hangs, and goes on hanging.

The threads' stacks are written by faulthandler, in the signal handler itself: even where the event loop never comes back, or waits in
C. The tasks' come after them, when the main thread is in Python again.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator

import trio


def write_stacks_on_signal() -> None:
    """From now on, in this process."""
    signal.signal(signal.SIGUSR1, _write_tasks)  # first: faulthandler calls who was there before
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)


def describe_tasks(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """Lines: a task, where it waits, outermost call first, and its children."""
    indent = "  " * depth
    yield f"{indent}{task.name}"
    for frame, line in task.iter_await_frames():
        if not frame.f_globals.get("__name__", "").startswith("trio._core"):  # where everybody waits
            yield f"{indent}  | {frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from describe_tasks(child, depth + 1)


def _write_tasks(*_: object) -> None:
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        root = None  # trio does not run yet, or any more
    lines = ["tasks:", *(describe_tasks(root) if root is not None else ["none"]), ""]
    os.write(2, "\n".join(lines).encode(errors="replace"))
