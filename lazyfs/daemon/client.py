"""The client's end of lazyfsd's control socket: small, blocking and quick to import, because every command waits for it.

The keeper holds the listening socket, so a connection can be made before the daemon has started. If nothing listens, the daemon is started.
If a daemon dies before it answers, its keeper starts another one, and the order is sent again.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from lazyfs.daemon.holding import SOCKET_NAME
from lazyfs.errors import LocalError, StoreUnusable, require
from lazyfs.kernel.open_files import require_open_files
from lazyfs.reports.steps import Step
from lazyfs.reports.wire import HasResult, Refused, decode_report, encode

_START_DEADLINE: Final = 20.0
_TRIES: Final = 20
_PAUSE: Final = 0.005
_CANCEL_DEADLINE: Final = 10.0

R = TypeVar("R")


class DaemonUnreachable(LocalError):
    """No lazyfsd answers."""


class Client:
    """Sends orders to the daemon of one state directory."""

    def __init__(self, store: Path, patience: float | None = None, *, only_first: bool = False) -> None:
        """`patience`: timeout in seconds for each report, or with `only_first` for the first one; None waits as long as the daemon runs."""
        self._store = store
        self._patience = patience
        self._only_first = only_first

    def is_running(self) -> bool:
        """Whether a daemon or its keeper listens."""
        connection = self._connect()
        if connection is not None:
            connection.close()
        return connection is not None

    def call(self, order: HasResult[R], *, start: bool) -> Iterator[Step | R]:
        """Send `order` and yield its steps, then its result. `start`: start the daemon if it does not run.

        If the iterator is closed or interrupted before the result, the order is cancelled and its end is waited for; it may have been
        executed. Raises Refused with the daemon's message, DaemonUnreachable if there is no daemon or it keeps dying, LocalError for an
        unreadable report.
        """
        for _ in range(_TRIES):
            connection = self._connect()
            if connection is None and start:
                connection = self._start()
            if connection is None:
                raise DaemonUnreachable(f"no lazyfsd serves {self._store}", hint="Nothing is mounted natively from there")
            with connection, suppress(ConnectionError), self._with_timeout(connection):
                connection.sendall(encode(order))
                with connection.makefile("rb") as lines, _cancel_order(connection):
                    for line in lines:
                        report = decode_report(line, order.result)
                        if report is not None:
                            yield report
                        if isinstance(report, order.result):
                            return
                        if self._only_first:
                            connection.settimeout(None)
            time.sleep(_PAUSE)  # it has died or stopped
        raise DaemonUnreachable(
            f"the lazyfsd of {self._store} exits each time it is contacted", hint=f"Its log is {self._store}/logs/lazyfsd.log"
        )

    @contextmanager
    def _with_timeout(self, connection: socket.socket) -> Iterator[None]:
        connection.settimeout(self._patience)
        try:
            yield
        except TimeoutError as error:
            raise DaemonUnreachable(
                f"the lazyfsd of {self._store} has not answered for {self._patience:.0f} s",
                hint="SIGUSR1 makes it log what its tasks are doing",
            ) from error

    def _connect(self) -> socket.socket | None:
        try:
            folder = os.open(self._store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnusable(f"the store {self._store} cannot be opened: {error.strerror}") from error
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Through the descriptor: the address of a socket has at most 107 bytes, the path of a store may be longer.
            connection.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except OSError as error:
            connection.close()
            raise DaemonUnreachable(f"the lazyfsd of {self._store} cannot be reached: {error.strerror}") from error
        finally:
            os.close(folder)
        return connection

    def _start(self) -> socket.socket:
        """Start the daemon and wait until it listens. Raises DaemonUnreachable, NotInstalled, LocalError if it cannot start."""
        require_open_files("lazyfsd, which is started from here,")
        require("lazyfsd", "pyfuse3")
        command = [sys.executable, "-m", "lazyfs.daemon", "--store", str(self._store)]
        end = time.monotonic() + _START_DEADLINE
        process, ended = 0, 0
        while time.monotonic() < end and not ended:
            connection = self._connect()
            if connection is not None:
                return connection
            # Exit code 0: another daemon is starting or stopping.
            if process:
                pid, status = os.waitpid(process, os.WNOHANG)
                process, ended = (0, os.waitstatus_to_exitcode(status)) if pid else (process, 0)
            else:
                # The daemon does not inherit signals that this process blocks.
                process = os.posix_spawn(sys.executable, command, os.environ, setsid=True, setsigmask=())
            time.sleep(_PAUSE)
        raise DaemonUnreachable(
            f"lazyfsd does not start for {self._store}" + (f": it ended with {ended}" if ended else ""),
            hint=f"Its log is {self._store}/logs/lazyfsd.log",
        )


@contextmanager
def _cancel_order(connection: socket.socket) -> Iterator[None]:
    """If the block is left before the last report, cancel the order and wait until the daemon has closed the connection."""
    try:
        yield
    except (Refused, ConnectionError, TimeoutError):
        raise
    except BaseException:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(_CANCEL_DEADLINE)
            while connection.recv(1 << 16):
                pass
        raise
