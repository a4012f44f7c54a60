"""lazyfsd's keeper: the small parent process that survives the daemon.

It holds what must outlive the daemon: the lock of the state directory, the listening sockets, and the FUSE connection, which ends when no
process has its descriptor any more. A daemon that is killed or crashes is started again at once and gets all of them; requests that the dead
one left unanswered wait in the kernel. The keeper should have no reason to fail: standard library only, no threads, no event loop, nothing
that grows.

It speaks systemd's protocol to the daemon (fdstore.py), so a daemon under systemd needs no keeper. A daemon whose keeper was killed keeps
running: it has the lock and the socket as well.

Two orders matter. The socket listens before the daemon has started, so that clients can connect and wait. At the end the lock is released
before the socket is closed: a client that is refused a connection finds the lock free.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from lazyfs.daemon.holding import SOCKET_NAME, listen, lock_store

_ABOVE: Final = 64
"""The keeper's own descriptors have numbers from here on; those passed to the daemon begin at FIRST."""
_FIRST: Final = 3
_MAX_STORED: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")
_MESSAGE: Final = 4096

_STABLE_TIME: Final = 10.0
"""A daemon that ran for so many seconds resets the count of quick exits."""
_MAX_QUICK_EXITS: Final = 500
"""Quick exits in a row that are followed by an immediate restart; one of the tests runs `kill -9` in a loop."""
_NEVER_READY_WEIGHT: Final = 100
"""A failed start counts as so many quick exits; not if the daemon was killed during the start while there are mounts."""
_LONGEST_PAUSE: Final = 30.0

_LOG_LIMIT: Final = 4 << 20
_LOG_INTERVAL: Final = 60.0


class Stored(NamedTuple):
    """A descriptor that the keeper holds for the daemon."""

    name: str
    descriptor: int


def keep(state: Path, command: list[str], sockets: Mapping[str, Path]) -> int:
    """Lock the state directory, and run the daemon `command` until it exits with 0. Returns the exit code.

    `sockets`: further sockets to listen at, by the names that the daemon knows. Takes over the whole process: descriptors, output, signals.
    Returns 0 at once if the directory has a keeper. Raises OSError if the directory cannot be used, LocalError if another process
    listens at one of the sockets.
    """
    os.umask(0o077)
    os.closerange(_FIRST, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    lock = lock_store(state)
    if lock is None:
        return 0
    log = Log(state / "logs")
    wanted = {"control": state / SOCKET_NAME, **sockets}
    ours = [*(Stored(name, _renumber(listen(path))) for name, path in wanted.items()), Stored("lock", _renumber(lock))]
    try:
        return Keeper(command, ours, log).run()
    finally:
        for stored in reversed(ours):
            os.close(stored.descriptor)


class Keeper:
    """Runs one daemon after the other."""

    def __init__(self, command: list[str], ours: Sequence[Stored], log: Log) -> None:
        self._command = command
        self._ours = tuple(ours)
        self._log = log
        self._stored: list[Stored] = []
        self._child = 0
        self._ready = False
        self._stopping = False
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind("")  # a free name in the abstract namespace: no path that could be too long

    def run(self) -> int:
        """Run until the daemon exits with 0, or further starts are hopeless. Returns the exit code."""
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, self._ask)
        trouble = 0
        while True:
            began = time.monotonic()
            self._start()
            status = self._watch(woken)
            lived = time.monotonic() - began
            if status == 0:
                return 0
            self._log.write(f"the daemon ({self._child}) {_describe_exit(status)} after {lived:.1f} s")
            if lived > _STABLE_TIME:
                trouble = 0
            killed = status == -signal.SIGKILL and bool(self._stored)
            trouble += 1 if self._ready or killed else _NEVER_READY_WEIGHT
            hopeless = trouble > _MAX_QUICK_EXITS or (status > 0 and not self._ready)
            if hopeless and not self._stored:
                return status if status > 0 else 1
            if hopeless and self._stopping:
                self._log.write("it does not stop after a signal: giving up its mounts")
                return 1
            pause = (
                0.0
                if trouble <= _MAX_QUICK_EXITS
                else min(0.1 * 2.0 ** ((trouble - _MAX_QUICK_EXITS) / _NEVER_READY_WEIGHT), _LONGEST_PAUSE)
            )
            if pause:
                self._log.write(f"it is started again in {pause:.1f} s")
                select.select([woken], [], [], pause)

    def _start(self) -> None:
        passed = [*self._ours, *self._stored]
        environment = {**os.environ, "NOTIFY_SOCKET": f"@{self._notify.getsockname()[1:].decode()}"}
        environment |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(name for name, _ in passed)}
        self._ready = False
        # Blocked: between fork and exec the child would handle a signal with the keeper's handler, and lose it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        self._child = os.fork()
        if self._child == 0:
            _exec(self._command, environment, [descriptor for _, descriptor in passed], mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _watch(self, woken: int) -> int:
        """Handle the daemon's messages until it exits; returns its exit code, or the negative number of a signal."""
        ended = os.pidfd_open(self._child)
        sources = select.poll()
        for descriptor in (ended, self._notify.fileno(), woken):
            sources.register(descriptor, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in sources.poll(_LOG_INTERVAL * 1000)}
                self._log.rotate()
                # Also after its death: a message may hold a descriptor to keep.
                self._receive()
                if woken in ready:
                    with suppress(BlockingIOError):
                        os.read(woken, _MESSAGE)
                if ended in ready:
                    return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        finally:
            os.close(ended)

    def _receive(self) -> None:
        size = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_MAX_STORED * 4)
        while True:
            try:
                message, extra, _, _ = self._notify.recvmsg(_MESSAGE, size, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            descriptors = array.array("i")
            sender = 0
            for level, kind, data in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    sender = _CREDENTIALS.unpack(data)[0]
            # Any process may send to an abstract name.
            self._handle(message if sender == self._child else b"", descriptors)

    def _handle(self, message: bytes, descriptors: Iterable[int]) -> None:
        said = dict(line.split("=", 1) for line in message.decode("ascii", "replace").splitlines() if "=" in line)
        name = said.get("FDNAME", "stored").replace(":", "")
        for descriptor in descriptors:
            if "FDSTORE" in said and len(self._stored) < _MAX_STORED:
                self._stored.append(Stored(name, _renumber(descriptor)))
            else:
                os.close(descriptor)
        if "FDSTOREREMOVE" in said:
            for stored in [stored for stored in self._stored if stored.name == name]:
                os.close(stored.descriptor)
                self._stored.remove(stored)
        if "READY" in said:
            self._ready = True
            if self._stopping:
                self._signal_child(signal.SIGTERM)  # the signal came during its start

    def _stop(self, number: int, _frame: object) -> None:
        self._log.write(f"stopping: received {signal.Signals(number).name}")
        if self._ready or self._stopping:
            self._signal_child(signal.SIGTERM)
        self._stopping = True

    def _ask(self, number: int, _frame: object) -> None:
        """Pass the signal on to the daemon, unless it is starting: without a handler it would die."""
        if self._ready:
            self._signal_child(number)

    def _signal_child(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child, number)


class Log:
    """The log file for all output, also of the daemon. It is bounded by copy and truncate, because the daemon has it open."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._path = folder / "lazyfsd.log"
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, standard)
        os.close(nothing)
        os.close(log)

    def write(self, text: str) -> None:
        """One line."""
        with suppress(OSError):  # a full disk must not stop the keeper
            os.write(2, f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper ({os.getpid()}): {text}\n".encode())

    def rotate(self) -> None:
        """Truncate the log when it is too long; a copy is kept."""
        with suppress(OSError):
            if os.fstat(2).st_size > _LOG_LIMIT:
                shutil.copyfile(self._path, self._path.with_name("lazyfsd.log.1"))
                os.ftruncate(2, 0)


def _exec(command: list[str], environment: dict[str, str], passed: Sequence[int], mask: Iterable[int]) -> NoReturn:
    """In the child: execute the daemon."""
    try:
        os.setpgid(0, 0)  # the keeper gets Ctrl-C from the terminal and passes it on
        for place, descriptor in enumerate(passed, _FIRST):
            os.dup2(descriptor, place)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execve(command[0], command, {**environment, "LISTEN_PID": str(os.getpid())})  # noqa: S606  no shell is the point
    finally:
        os._exit(127)


def _renumber(descriptor: int) -> int:
    """Move `descriptor` to a number of _ABOVE or more."""
    duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    os.close(descriptor)
    return duplicate


def _describe_exit(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
