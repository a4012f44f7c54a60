"""From the socket that outlives us to grpcio's, which cannot.

grpcio cannot take over a listening socket, and unlinks a living one at the path that it is given. So the socket that containerd
knows is held by whoever keeps our descriptors (lazyfs/daemon/fdstore.py): while no daemon runs, callers wait in its queue. The daemon
accepts there, and passes bytes to and from grpcio's own socket, in a folder that nobody else can enter. The handshake is begun with
what accepts (handshakes.py): between the two no death of ours can come, after which a caller would call nobody for a while.
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
    """Accept until cancelled; connections end then, and with them those that were `begun` by Handshakes. Neither a connection nor an
    accept that fails ends another connection."""
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
            # Nothing was sent before it: there is room for it, and nobody waits.
            await connection.send(SETTINGS)
        except OSError:  # gone already
            await caller.aclose()
        else:
            callers.start_soon("relayed connection", _serve, caller, target)


async def _serve(caller: trio.SocketStream, target: Path) -> None:
    """One on which the handshake was begun."""
    async with caller:
        try:
            server = await trio.open_unix_socket(str(target))
        except OSError as error:
            _log.warning("cannot serve a call of containerd: %s", error)
            return
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, caller, server, nursery.cancel_scope, AcknowledgementFilter().rest)
            await _copy(server, caller, nursery.cancel_scope)


async def _copy(
    source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope, transform: Callable[[bytes], bytes] = bytes
) -> None:
    """gRPC ends both directions together."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(_BUFFER_SIZE):
            await sink.send_all(transform(data))
    both.cancel()
