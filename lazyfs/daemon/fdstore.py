"""The daemon's end of whoever keeps its descriptors: lazyfsd's keeper, or systemd. Both speak the same protocol.

Descriptors come in as systemd passes them: from 3 on, LISTEN_FDS of them, for the process LISTEN_PID, named by LISTEN_FDNAMES. They go
out as datagrams to NOTIFY_SOCKET with the descriptor attached. Source: sd_listen_fds(3), sd_notify(3),
sd_watchdog_enabled(3).
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
"""The number of the first descriptor that is passed."""


class FdStore:
    """Descriptors that outlive this process, by name."""

    def __init__(self, descriptors: dict[str, int], notify: str, watchdog: float = 0.0) -> None:
        self._descriptors = descriptors
        self._notify = f"\0{notify[1:]}" if notify.startswith("@") else notify
        self.watchdog = watchdog
        """Seconds after which a daemon that has not said WATCHDOG=1 is ended and started again; 0: never."""
        self._sender: socket.socket | None = None
        """Kept: a sign of life must not need a descriptor that there may not be."""
        self.is_ready = False
        """Whether the keeper was told that the daemon has come up."""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Self:
        """What was passed to this process. The variables are removed: they are not for the processes that it starts."""
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
        """The descriptor that was handed to this process, or that it has kept since; None where there is none."""
        return self._descriptors.get(name)

    def named(self, prefix: str) -> dict[str, int]:
        """The descriptors whose names begin so, by the rest of their names."""
        found = self._descriptors.items()
        return {name.removeprefix(prefix): descriptor for name, descriptor in found if name.startswith(prefix)}

    def keep(self, name: str, descriptor: int) -> None:
        """Hand a duplicate of `descriptor` to the keeper; the descriptor itself belongs to the store from now on."""
        self._descriptors[name] = descriptor
        # FDPOLL=0: systemd would close it by itself when it looks broken, and that is ours to see.
        self.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def drop(self, name: str) -> None:
        """Close the descriptor, here and there; nothing happens where there is none."""
        descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
            self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def listener(self, name: str) -> socket.socket:
        """The listening socket that was handed to this process. Raises KeyError where there is none."""
        return socket.socket(fileno=self._descriptors.pop(name))

    def notify(self, message: str, *descriptors: int) -> None:
        """Tell the keeper, in sd_notify's words (`READY=1`). Without one, nothing happens."""
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
            # Who is not told cannot help us when we die; while we live, nothing is lost.
            _log.warning("the keeper of lazyfsd does not answer (%s): mounts will not survive the daemon", error.strerror)
