"""Processes that build metadata images: `python -m lazyfs.erofs`, driven over pipes, one request at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from lazyfs import errors
from lazyfs.erofs.work import Build, Built, Failed, NeededBelow, Read
from lazyfs.errors import LazyfsError, LocalError

_DEADLINE: Final = 600.0
"""Seconds for one request; two million entries take 20."""
_IMPORT_PATH: Final = Path(__file__).parents[2]
"""The directory of the package that this process runs: the builder imports the same code."""
_Answer = TypeVar("_Answer", NeededBelow, Built)


class Builder:
    """One builder process."""

    def __init__(self) -> None:
        path = f"{_IMPORT_PATH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        self._process = subprocess.Popen(
            # -P: modules in the working directory are not imported.
            [sys.executable, "-P", "-m", "lazyfs.erofs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ask(self, question: Read | Build, kind: type[_Answer]) -> _Answer:
        """The answer, of type `kind`. Raises the error of the process, or LocalError if it has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = threading.Timer(_DEADLINE, self._process.kill)
        deadline.start()
        try:
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            deadline.cancel()
        if not line:
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise LocalError(f"the process that builds metadata images ended with {how}", hint="Its output is on standard error.")
        answer = msgspec.json.decode(line, type=NeededBelow | Built | Failed)
        if isinstance(answer, Failed):
            known: type[LazyfsError] = getattr(errors, answer.kind)
            raise known(answer.message, hint=answer.hint)
        assert isinstance(answer, kind)
        return answer

    def close(self) -> None:
        """Kill the process. An image that it was writing has no name yet."""
        self._process.kill()
        self._process.communicate()


class Builders:
    """A context manager with one builder process for each thread that asks for one."""

    def __init__(self) -> None:
        self._of: dict[int, Builder] = {}
        self._started: list[Builder] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for builder in (*self._of.values(), *self._started):
            builder.close()

    def start(self, count: int) -> None:
        """Start `count` processes ahead of time: a process needs 50 ms until it can answer."""
        for _ in range(count):
            self._started.append(Builder())

    def for_this_thread(self) -> Builder:
        """The builder of the calling thread."""
        thread = threading.get_ident()
        if thread not in self._of:
            try:
                self._of[thread] = self._started.pop()
            except IndexError:
                self._of[thread] = Builder()
        return self._of[thread]
