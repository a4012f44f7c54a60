"""Going to the background, and telling the one who waits in the foreground how it went.

The fork comes first, before threads, event loop or sqlite exist: none of them survives one. From then on the child
reports in lines of JSON through a pipe, and the parent only listens. A child that dies without a word is an error as well.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from lazyfs.errors import LazyfsError, MountFailed, not_installed

_log = logging.getLogger(__name__)

Report = dict[str, Any]
"""On the way: `{"note": TEXT}` for the user's eyes, `{"task": TEXT, "done_bytes": BYTES, "total": BYTES}` for a bar. Then
`{"ready": true}`, and while the parent waits for all to be here `{"left": BYTES, "total": BYTES, "trouble": TEXT}`, the last of
these with `"done": true`. Instead of any of these `{"error": TEXT, "code": EXIT CODE}`."""


class Reporter:
    """The child's end. After `detach` nobody listens any more."""

    def __init__(self, pipe: TextIO | None) -> None:
        self._pipe = pipe

    def tell(self, **report: Any) -> bool:
        """One line to the parent; False if it no longer listens."""
        if self._pipe is None:
            return False
        try:
            self._pipe.write(json.dumps(report) + "\n")
            self._pipe.flush()
        except BrokenPipeError:
            self._pipe = None  # the parent was interrupted; the mount lives on
        return self._pipe is not None

    def detach(self) -> None:
        """Let the parent go: what it sees next is the end of the pipe."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def fork_daemon(serve: Callable[[Reporter], None]) -> tuple[int, Iterator[Report]]:
    """Run `serve` in a child of its own session; returns its pid and its reports as they come.

    The child never returns from here: it ends with 0, or with the exit code of the LazyfsError that it reports.
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
            _silence()
            reporter = Reporter(os.fdopen(writing, "w"))
            try:
                serve(reporter)
                code = 0
            except LazyfsError as error:
                code = error.exit_code
                if not reporter.tell(error=str(error), code=code):
                    _log.error("%s", error)
            except BaseException as surprise:  # noqa: BLE001  nobody above will print it: this process ends here
                missing = not_installed(surprise)
                if missing is None:
                    _log.critical("the mount has ended: %r", surprise, exc_info=surprise)
                    reporter.tell(error=f"the mount's process failed: {surprise!r}; its log has the traceback", code=code)
                else:
                    code = missing.exit_code
                    reporter.tell(error=str(missing), code=code)
        finally:
            os._exit(code)
    os.close(writing)
    return pid, _reports(reading)


def _reports(reading: int) -> Iterator[Report]:
    with os.fdopen(reading) as pipe:
        for line in pipe:
            yield json.loads(line)


def _silence() -> None:
    """Let go of the terminal: a daemon that holds it keeps an ssh session or a pipe of its caller open."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")


def died(pid: int) -> MountFailed:
    """The error for a child that closed its pipe without a word."""
    _, status = os.waitpid(pid, 0)
    how = (
        f"was killed by signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else f"ended with {os.waitstatus_to_exitcode(status)}"
    )
    return MountFailed(f"the mount's process {how} before the mount answered")
