"""A bundle run by runc, as if its program ran here: standard input and output, terminal, signals and exit code are its own.

runc stays in this process's group, in the foreground of its terminal: it makes the terminal raw, passes its size on, and
hears from the kernel itself what is typed there (Ctrl-C, a hangup). What somebody sends to this process alone is passed on.
The two are told apart by si_code: passing everything on would deliver Ctrl-C twice.
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
"""What env(1), chroot(1) and Docker end with when there is no program whose exit code they could pass on."""

_SENT_BY_KERNEL: Final = 0x80
"""SI_KERNEL of siginfo.h."""
_MAX_LOG: Final = 1 << 20


class _LogLine(msgspec.Struct):
    msg: str = ""


def require_runc() -> None:
    """Raises LocalError where runc is not installed: said before anything is mounted."""
    if not any(os.access(f"{folder}/runc", os.X_OK) for folder in os.get_exec_path()):
        raise LocalError("runc is not installed; lazyfs run needs it", hint="Install it: apt install runc")


def run_bundle(bundle: Path, name: str, mask: Collection[int], hold: int | None = None) -> int:
    """Run the bundle's program as the container `name`; its exit code, 128 + N where signal N ended it.

    To be called where signals are held; `mask` is the program's, and `hold` a descriptor that runc keeps open while it lives.
    NOT_RUN, NOT_EXECUTABLE, NOT_FOUND where no program ran: runc has said why, on standard error. Raises LocalError where
    there is no runc.
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
        # Its container would live on without it.
        os.waitpid(os.posix_spawnp("runc", ["runc", "delete", "--force", name], os.environ, setsigmask=mask), 0)
        return 128 - code
    # The file is written when the program has been started.
    return code if started.exists() else _failure_code(log)


def _wait(process: int) -> int:
    """Until `process` has ended; what is sent to us meanwhile goes there. Its exit code, negative for a signal."""
    while True:
        found = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
        if found.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(process, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        elif found.si_code != _SENT_BY_KERNEL:
            os.kill(process, found.si_signo)


def _failure_code(log: Path) -> int:
    """The code for what runc said last; in its words the reason comes at the end."""
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
