"""Relays connections from the socket that survives lazyfsd to grpcio's, which cannot.

grpcio cannot take over a listening socket, and unlinks an existing one at its path. So the socket that containerd knows is held by
lazyfsd's keeper or systemd (lazyfs/daemon/fdstore.py): while no daemon runs, callers wait in its queue. The daemon accepts there and copies
bytes to and from grpcio's own socket, in a private folder. The handshake is begun together with accepting (handshakes.py): if the daemon
died between the two, a caller would stop calling for a while.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from lazyfs.containerd.handshakes import SETTINGS, AcknowledgementFilter
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_BUFFER_SIZE: Final = 64 << 10
_PAUSE: Final = 0.1


async def relay(listener: socket.socket, target: Path, tasks: Supervisor, begun: Iterable[socket.socket] = ()) -> None:
    """Accept and relay until cancelled, beginning with the connections that Handshakes has `begun`. A failure of one connection or of an
    accept does not affect other connections. Cancelled: all connections are closed."""
    async with trio.open_nursery() as nursery:
        callers = tasks.within(nursery)
        for known in begun:
            caller = trio.SocketStream(trio.socket.from_stdlib_socket(known))
            callers.start_soon("relayed connection", _serve, caller, target)
        callers.keep_running(
            "accept of calls", _accept, trio.socket.from_stdlib_socket(listener), target, callers, subject=str(target)
        )


async def _accept(accepting: trio.socket.SocketType, target: Path, callers: Supervisor) -> None:
    while True:
        try:
            connection, _ = await accepting.accept()
        except OSError as error:  # no descriptors left: callers wait
            _log.warning("cannot accept a call of containerd yet: %s", error)
            await trio.sleep(_PAUSE)
            continue
        caller = trio.SocketStream(connection)
        try:
            # The first bytes on the connection: they fit into the buffer, so this does not block.
            await connection.send(SETTINGS)
        except OSError:  # the caller has gone
            await caller.aclose()
        else:
            callers.start_soon("relayed connection", _serve, caller, target)


async def _serve(caller: trio.SocketStream, target: Path) -> None:
    """Relay a connection whose handshake was begun."""
    async with caller:
        try:
            server = await trio.open_unix_socket(str(target))
        except OSError as error:
            _log.warning("cannot serve a call of containerd: %s", error)
            return
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, caller, server, nursery.cancel_scope, AcknowledgementFilter().filter)
            await _copy(server, caller, nursery.cancel_scope)


async def _copy(
    source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope, transform: Callable[[bytes], bytes] = bytes
) -> None:
    """Copy one direction. When it ends, so does the other: gRPC closes both together."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(_BUFFER_SIZE):
            await sink.send_all(transform(data))
    both.cancel()
