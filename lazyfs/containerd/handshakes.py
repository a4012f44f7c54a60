"""Begins gRPC's handshake with callers that connect while lazyfsd is still starting.

A caller that connects to a socket that the keeper holds waits in its queue. But gRPC waits only one second for the server's SETTINGS;
after that it fails calls at once and does not reconnect for up to three seconds. A start that takes longer (new code from a cold disk, a
large database, a busy machine) would make starts of containers fail that only have to wait. So after a while a thread accepts connections
and sends an empty SETTINGS, which is how every server begins; the rest waits for grpcio.

Not at once: a call whose connection is still in the queue survives another death of the daemon, one with a handshake does not. And always
together with accepting, here and in relay.py: a caller whose connection is cut between the two stops calling as well.

The client acknowledges that SETTINGS frame. grpcio sends its own and does not know about it, so the acknowledgement is filtered out of
what the client sends. Standard library only: callers wait for the imports.

Source: RFC 9113, 3.4, 4.1 and 6.5; grpc-go, internal/transport (NewHTTP2Client), backoff.DefaultConfig; containerd, pkg/dialer and
the back-off of its proxy plugins.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from typing import Final, Self

SETTINGS: Final = bytes(3) + b"\x04\x00" + bytes(4)
"""A frame of length 0, type 4, no flags, stream 0: the defaults of HTTP/2."""
ACKNOWLEDGEMENT: Final = SETTINGS[:4] + b"\x01" + bytes(4)
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes from a client."""
_HEADER: Final = 9
_ACCEPT_DELAY: Final = 0.5
"""Seconds from the start of this process until it accepts: the second that callers wait may have begun when the previous process died."""
_PAUSE: Final = 0.1


class Handshakes:
    """Accepts on listening sockets and begins handshakes until it is stopped. A context manager; not thread-safe."""

    def __init__(self, listeners: Mapping[str, int], patience: float | None = None) -> None:
        """`listeners`: descriptors by name, which stay the caller's. `patience`: seconds until the first accept, instead of _ACCEPT_DELAY."""
        self._listeners = {name: socket.socket(fileno=os.dup(descriptor)) for name, descriptor in listeners.items()}
        self._accepted: dict[str, list[socket.socket]] = {name: [] for name in listeners}
        self._patience = max(0.0, _ACCEPT_DELAY - _process_age()) if patience is None else patience
        self._stop_event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="lazyfs-handshakes", daemon=True)
        if listeners:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and close the connections: their callers see an error instead of waiting."""
        for begun in self.stop().values():
            for connection in begun:
                connection.close()

    def stop(self) -> dict[str, list[socket.socket]]:
        """Stop accepting. Returns the connections with a begun handshake, by the name of the socket; the caller owns them.

        Blocking, for less than a millisecond. A second call returns none.
        """
        if self._thread.is_alive():
            os.eventfd_write(self._stop_event, 1)
            self._thread.join()
        if self._stop_event >= 0:
            os.close(self._stop_event)
            self._stop_event = -1
        for listener in self._listeners.values():
            listener.close()
        begun, self._accepted = self._accepted, {}
        return begun

    def _run(self) -> None:
        waiting = select.poll()
        waiting.register(self._stop_event, select.POLLIN)
        if waiting.poll(self._patience * 1000):
            return
        names = {}
        for name, listener in self._listeners.items():
            listener.setblocking(False)
            waiting.register(listener, select.POLLIN)
            names[listener.fileno()] = name
        while True:
            ready = {descriptor for descriptor, _ in waiting.poll()}
            if self._stop_event in ready:
                return
            for descriptor in ready:
                try:
                    self._begin(names[descriptor])
                except OSError:  # the caller has gone, or no descriptors are left: callers wait
                    select.select([self._stop_event], [], [], _PAUSE)

    def _begin(self, name: str) -> None:
        connection, _ = self._listeners[name].accept()
        self._accepted[name].append(connection)
        connection.sendall(SETTINGS)


def _process_age() -> float:
    """Seconds since this process started, including the start of Python; in steps of 0.01 s. Source: proc(5), starttime."""
    with open("/proc/self/stat", "rb") as stat:
        begun = int(stat.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun


class AcknowledgementFilter:
    """Removes the first acknowledgement of SETTINGS from what a client sends."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._passing = len(PREFACE)
        """Bytes until the next frame header; -1: the acknowledgement was removed."""

    def filter(self, data: bytes) -> bytes:
        """The bytes to pass on after `data` was received."""
        passed = bytearray()
        while data and self._passing >= 0:
            if self._passing:
                passed += data[: self._passing]
                self._passing, data = max(0, self._passing - len(data)), data[self._passing :]
                continue
            missing = _HEADER - len(self._header)
            self._header += data[:missing]
            data = data[missing:]
            if len(self._header) == _HEADER:
                if self._header == ACKNOWLEDGEMENT:
                    self._passing = -1
                else:
                    passed += self._header
                    self._passing = int.from_bytes(self._header[:3])
                self._header.clear()
        return bytes(passed) + data
