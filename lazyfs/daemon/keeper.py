"""lazyfsd's keeper: the small parent that does not die with the daemon.

It holds what must outlive the daemon's process: the lock of the state directory, the listening socket, and the FUSE connection,
which ends when nobody has its descriptor any more. A daemon that is killed or crashes is started again at once and is handed
all of them; requests that the dead one left unanswered wait in the kernel meanwhile. It is to have no reason of its
own to fail: standard library only, no threads, no event loop, nothing that grows.

To the daemon it speaks as systemd does (fdstore.py), so that a daemon under systemd needs no keeper. A daemon that is alone, because
its keeper was killed, goes on: it has the lock and the socket as well.

Order matters twice. The socket listens before the daemon is up, so for a client to connect is to wait. At the end the lock goes
first and the socket after it: whoever is refused a connection finds the lock free.
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
"""Our own descriptors have numbers from here on, out of the way of those that are passed, which begin with FIRST."""
_FIRST: Final = 3
_MAX_STORED: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")
_MESSAGE: Final = 4096

_STABLE_TIME: Final = 10.0
"""Seconds after which a daemon's end has nothing to do with those before it."""
_MAX_QUICK_EXITS: Final = 500
"""Quick ends, one after the other, that are followed by a start at once: `kill -9` in a loop is one of our tests."""
_NEVER_READY_WEIGHT: Final = 100
"""As many quick ends count for one of a daemon that did not come up; while mounts hang on it, not for one that was killed on the way."""
_LONGEST_PAUSE: Final = 30.0

_LOG_LIMIT: Final = 4 << 20
_LOG_INTERVAL: Final = 60.0


class Stored(NamedTuple):
    """A descriptor that the daemon gave to keep."""

    name: str
    descriptor: int


def keep(state: Path, command: list[str], sockets: Mapping[str, Path]) -> int:
    """Hold the state directory, which is ours, and run `command`, the daemon, until it ends with 0. The exit code.

    `sockets`: where it shall listen besides, by the names that the daemon knows them by. Takes the whole process over: its
    descriptors, its output, its signals. 0 at once where the directory has a keeper. Raises OSError when the directory cannot be
    used, LocalError where another process listens at one of the sockets.
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
    """One daemon after the other."""

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
        self._notify.bind("")  # a free name in the abstract name space: no path, no limit of its length

    def run(self) -> int:
        """Until the daemon ends with 0, or it is no use to start it again. The exit code."""
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
        # A signal that came between fork and exec would be ours in the child, and lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        self._child = os.fork()
        if self._child == 0:
            _exec(self._command, environment, [descriptor for _, descriptor in passed], mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _watch(self, woken: int) -> int:
        """Listen to the daemon until it ends: its exit code, or the negative number of the signal."""
        ended = os.pidfd_open(self._child)
        sources = select.poll()
        for descriptor in (ended, self._notify.fileno(), woken):
            sources.register(descriptor, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in sources.poll(_LOG_INTERVAL * 1000)}
                self._log.rotate()
                # All that it said before it died: a descriptor that it gave us may be in there.
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
            # Anybody may write to an abstract name.
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
                self._signal_child(signal.SIGTERM)  # it was starting when we were told

    def _stop(self, number: int, _frame: object) -> None:
        self._log.write(f"stopping: received {signal.Signals(number).name}")
        if self._ready or self._stopping:
            self._signal_child(signal.SIGTERM)
        self._stopping = True

    def _ask(self, number: int, _frame: object) -> None:
        """What is asked of us, the daemon answers; one that is just starting would die of it."""
        if self._ready:
            self._signal_child(number)

    def _signal_child(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child, number)


class Log:
    """Where output goes from now on, the daemon's too. Bounded by copying it and cutting it, because others hold it open."""

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
        with suppress(OSError):  # a full disk is not a reason to end
            os.write(2, f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper ({os.getpid()}): {text}\n".encode())

    def rotate(self) -> None:
        """Begin anew when it has become long; the part before is kept."""
        with suppress(OSError):
            if os.fstat(2).st_size > _LOG_LIMIT:
                shutil.copyfile(self._path, self._path.with_name("lazyfsd.log.1"))
                os.ftruncate(2, 0)


def _exec(command: list[str], environment: dict[str, str], passed: Sequence[int], mask: Iterable[int]) -> NoReturn:
    """In the child: be the daemon."""
    try:
        os.setpgid(0, 0)  # Ctrl-C in a terminal is for the keeper, which passes it on
        for place, descriptor in enumerate(passed, _FIRST):
            os.dup2(descriptor, place)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execve(command[0], command, {**environment, "LISTEN_PID": str(os.getpid())})  # noqa: S606  no shell is the point
    finally:
        os._exit(127)


def _renumber(descriptor: int) -> int:
    """`descriptor` under a number that is out of the way."""
    duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    os.close(descriptor)
    return duplicate


def _describe_exit(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
