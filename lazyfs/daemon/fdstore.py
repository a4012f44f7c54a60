"""The daemon's side of the descriptor store: of lazyfsd's keeper, or of systemd. Both speak the same protocol.

Descriptors are passed as by systemd: from 3 on, LISTEN_FDS of them, for the process LISTEN_PID, with the names in LISTEN_FDNAMES. They are
stored by a datagram to NOTIFY_SOCKET with the descriptor attached. Source: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import array
import logging
import os
import socket
import weakref
from collections.abc import MutableMapping
from typing import Final, Self

_log = logging.getLogger(__name__)

FIRST: Final = 3
"""The number of the first passed descriptor."""


class FdStore:
    """Descriptors that outlive this process, by name."""

    def __init__(self, descriptors: dict[str, int], notify: str, watchdog: float = 0.0) -> None:
        self._descriptors = descriptors
        self._notify = f"\0{notify[1:]}" if notify.startswith("@") else notify
        self.watchdog = watchdog
        """Seconds after which systemd restarts a daemon that has not sent WATCHDOG=1; 0: never."""
        self._sender: socket.socket | None = None
        """Kept open: WATCHDOG=1 must not need a new descriptor."""
        self.is_ready = False
        """Whether READY=1 was sent."""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Self:
        """The descriptors passed to this process. The variables are removed, so that child processes do not get them."""
        process, count, names = (environment.pop(f"LISTEN_{what}", "") for what in ("PID", "FDS", "FDNAMES"))
        notify = environment.pop("NOTIFY_SOCKET", "")
        watched, watchdog = (environment.pop(f"WATCHDOG_{what}", "") for what in ("PID", "USEC"))
        descriptors: dict[str, int] = {}
        if process == str(os.getpid()):
            for number, name in zip(range(FIRST, FIRST + int(count)), names.split(":"), strict=False):
                os.set_inheritable(number, False)
                descriptors[name] = number
        return cls(descriptors, notify, int(watchdog or 0) / 1e6 if watched in {"", str(os.getpid())} else 0.0)

    def get(self, name: str) -> int | None:
        """The descriptor that was passed or stored under `name`; None if there is none."""
        return self._descriptors.get(name)

    def named(self, prefix: str) -> dict[str, int]:
        """The descriptors whose names begin with `prefix`, by the rest of the name."""
        found = self._descriptors.items()
        return {name.removeprefix(prefix): descriptor for name, descriptor in found if name.startswith(prefix)}

    def keep(self, name: str, descriptor: int) -> None:
        """Store a duplicate of `descriptor` in the keeper. This object then owns the descriptor."""
        self._descriptors[name] = descriptor
        # FDPOLL=0: otherwise systemd closes a descriptor that looks broken, which the daemon decides itself.
        self.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def drop(self, name: str) -> None:
        """Close the descriptor here and in the keeper; does nothing if there is none."""
        descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
            self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def listener(self, name: str) -> socket.socket:
        """The passed listening socket. Raises KeyError if there is none."""
        return socket.socket(fileno=self._descriptors.pop(name))

    def notify(self, message: str, *descriptors: int) -> None:
        """Send a message of sd_notify (`READY=1`) to the keeper. Does nothing without a keeper."""
        self.is_ready = self.is_ready or message.startswith("READY=1")
        if not self._notify:
            return
        try:
            if self._sender is None:
                self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                weakref.finalize(self, self._sender.close)
            extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            self._sender.sendmsg([message.encode()], extra, 0, self._notify)
        except OSError as error:
            # The daemon keeps working; only its mounts will not survive it.
            _log.warning("the keeper of lazyfsd does not answer (%s): mounts will not survive the daemon", error.strerror)
