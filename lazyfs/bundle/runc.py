"""Runs a bundle with runc so that its program behaves like this process: standard streams, terminal, signals and exit code are its own.

runc stays in this process group, in the foreground of the terminal: it sets raw mode, passes the window size on, and gets the signals of
the terminal (Ctrl-C, a hangup) from the kernel. A signal that another process sends to this one is passed on. si_code tells the two
apart: if every signal was passed on, Ctrl-C would arrive twice.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from lazyfs.bundle.signals import PASSED_ON
from lazyfs.errors import LocalError

NOT_RUN: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
"""The exit codes of env(1), chroot(1) and Docker when no program ran."""

_SENT_BY_KERNEL: Final = 0x80
"""SI_KERNEL of siginfo.h."""
_MAX_LOG: Final = 1 << 20


class _LogLine(msgspec.Struct):
    msg: str = ""


def require_runc() -> None:
    """Raises LocalError if runc is not installed. Called before anything is mounted."""
    if not any(os.access(f"{folder}/runc", os.X_OK) for folder in os.get_exec_path()):
        raise LocalError("runc is not installed; lazyfs run needs it", hint="Install it: apt install runc")


def run_bundle(bundle: Path, name: str, mask: Collection[int], hold: int | None = None) -> int:
    """Run the bundle's program as the container `name`; returns its exit code, or 128 + N if signal N killed runc.

    Call it inside of `hold_signals`. `mask` is the program's signal mask, `hold` a descriptor that runc keeps open while it runs.
    Returns NOT_RUN, NOT_EXECUTABLE or NOT_FOUND if no program ran; runc has then printed the reason. Raises LocalError if runc cannot be
    started.
    """
    started, log = bundle / "pid", bundle / "runc.log"
    options = ("--bundle", str(bundle), "--pid-file", str(started))
    command = ["runc", "--log", str(log), "--log-format", "json", "run", *options, name]
    if hold is not None:
        os.set_inheritable(hold, True)
    try:
        process = os.posix_spawnp("runc", command, os.environ, setsigmask=mask, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
    except OSError as error:
        raise LocalError(f"cannot start runc: {error.strerror}") from error
    code = _wait(process)
    if code < 0:
        # The container would survive runc.
        os.waitpid(os.posix_spawnp("runc", ["runc", "delete", "--force", name], os.environ, setsigmask=mask), 0)
        return 128 - code
    # runc writes the pid file when it has started the program.
    return code if started.exists() else _failure_code(log)


def _wait(process: int) -> int:
    """Wait for `process` and pass signals on to it. Returns its exit code, negative for a signal."""
    while True:
        found = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
        if found.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(process, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        elif found.si_code != _SENT_BY_KERNEL:
            os.kill(process, found.si_signo)


def _failure_code(log: Path) -> int:
    """The exit code for the last message of runc, which has the reason at its end."""
    try:
        with log.open("rb") as file:
            line = file.read(_MAX_LOG).strip().rpartition(b"\n")[2]
        message = msgspec.json.decode(line, type=_LogLine).msg
    except (OSError, msgspec.DecodeError):
        return NOT_RUN
    if 'exec: "' not in message:
        return NOT_RUN
    if message.endswith(("executable file not found in $PATH", "no such file or directory")):
        return NOT_FOUND
    return NOT_EXECUTABLE if message.endswith(("permission denied", "is a directory", "not a directory")) else NOT_RUN
