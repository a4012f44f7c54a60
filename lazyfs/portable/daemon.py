"""Forks the process of a portable mount, and reports its progress to the parent in the foreground.

The fork comes first, before threads, the event loop and sqlite exist: none of them survives one. The child reports through a pipe, in the
lines of reports/wire.py, and the parent only reads. A child that dies without a report is an error, too.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from lazyfs.errors import LazyfsError, MountFailed, not_installed
from lazyfs.reports.results import PortableResult
from lazyfs.reports.steps import Step
from lazyfs.reports.wire import Refusal, decode_report, encode, encode_result

_log = logging.getLogger(__name__)


class Reporter:
    """The child's end of the pipe. After `detach` reports are dropped."""

    def __init__(self, pipe: BinaryIO | None) -> None:
        self._pipe = pipe

    def send(self, report: Step | PortableResult | Refusal) -> bool:
        """Send a report to the parent; False if it no longer reads."""
        if self._pipe is None:
            return False
        try:
            self._pipe.write(encode_result(report) if isinstance(report, PortableResult) else encode(report))
            self._pipe.flush()
        except BrokenPipeError:
            self._pipe = None  # the parent was interrupted; the mount stays
        return self._pipe is not None

    def detach(self) -> None:
        """Close the pipe: the parent sees its end."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def fork_daemon(serve: Callable[[Reporter], None]) -> tuple[int, Iterator[Step | PortableResult]]:
    """Run `serve` in a child with its own session; returns its pid and an iterator of its reports, which raises Refused for a refusal.

    The child never returns: it exits with 0, or with the exit code of the LazyfsError that it reports.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            os.setsid()
            _detach_from_terminal()
            reporter = Reporter(os.fdopen(writing, "wb"))
            try:
                serve(reporter)
                code = 0
            except LazyfsError as error:
                code = error.exit_code
                if not reporter.send(Refusal(str(error), code)):
                    _log.error("%s", error)
            except BaseException as surprise:  # noqa: BLE001  nothing above prints it: this process exits here
                missing = not_installed(surprise)
                if missing is None:
                    _log.critical("the mount ended unexpectedly: %r", surprise, exc_info=surprise)
                    reporter.send(Refusal(f"the mount's process failed: {surprise!r}; its log has the traceback", code))
                else:
                    code = missing.exit_code
                    reporter.send(Refusal(str(missing), code))
        finally:
            os._exit(code)
    os.close(writing)
    return pid, _reports(reading)


def _reports(reading: int) -> Iterator[Step | PortableResult]:
    with os.fdopen(reading, "rb") as pipe:
        for line in pipe:
            report = decode_report(line, PortableResult)
            if report is not None:
                yield report


def _detach_from_terminal() -> None:
    """Detach from the terminal: a daemon that keeps it open blocks the end of an ssh session or of the caller's pipe."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")


def exit_error(pid: int) -> MountFailed:
    """The error for a child that closed its pipe without a result."""
    _, status = os.waitpid(pid, 0)
    how = (
        f"was killed by signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else f"ended with {os.waitstatus_to_exitcode(status)}"
    )
    return MountFailed(f"the mount's process {how} before the mount answered")
