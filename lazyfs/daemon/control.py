"""The daemon's end of its socket: one order a connection, one task each.

A client that goes away cancels its order: what has not come to be is undone by whoever was at it. Only the daemon's own user may
ask, whatever the socket's mode says.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec
import trio

from lazyfs.daemon.orders import MAX_ORDER, Order, Report, decode_order, encode
from lazyfs.errors import LazyfsError, NotNative, foremost
from lazyfs.live.uses import Uses
from lazyfs.tasks import Guarded

_log = logging.getLogger(__name__)

_ORDER_DEADLINE: Final = 10.0
"""Seconds that a client has to say what it wants."""
_ANSWER_DEADLINE: Final = 30.0
"""Seconds that a client may leave a report unread: one that is stopped (Ctrl-Z) must not hold an order up for ever."""
_ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next client is accepted, after one could not be."""
_PEER: Final = struct.Struct("3i")

Tell = Callable[[Report], Awaitable[None]]
Carry = Callable[[Order, Tell], Awaitable[Report]]
"""Carries an order out, telling how it goes; returns the last report without its `done`. Raises LazyfsError."""


async def serve_control(listener: socket.socket, user: int, carry: Carry, uses: Uses) -> None:
    """Accept until cancelled; orders under way are cancelled then.

    Each client counts as one of `uses` from its connection to its last report: an order is under way as long as that.
    """
    async with trio.open_nursery() as nursery:
        clients = Guarded(nursery)
        accepting = trio.socket.from_stdlib_socket(listener)
        while True:
            try:
                connection, _ = await accepting.accept()
            except OSError as error:  # no descriptors left, for example: clients wait in the queue
                _log.warning("an order has to wait: %s", error)
                await trio.sleep(_ACCEPT_PAUSE)
                continue
            clients.start_soon(_serve, trio.SocketStream(connection), user, carry, uses)


async def _serve(stream: trio.SocketStream, user: int, carry: Carry, uses: Uses) -> None:
    with uses.in_use():
        await _serve_counted(stream, user, carry)


async def _serve_counted(stream: trio.SocketStream, user: int, carry: Carry) -> None:
    async with stream:
        peer = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(peer)[1] != user:
            return

        async def tell(report: Report) -> None:
            with trio.move_on_after(_ANSWER_DEADLINE):
                await stream.send_all(encode(report))

        try:
            await tell(await _carried_out(stream, carry, tell))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has gone: nobody is left to be told


async def _carried_out(stream: trio.SocketStream, carry: Carry, tell: Tell) -> Report:
    """The last report."""
    try:
        line = await _receive_line(stream)
        if line is None:
            return {"error": "the order did not come whole", "code": 2}
        order = decode_order(line)
    except msgspec.DecodeError as error:
        return {"error": f"lazyfsd does not understand this client: {error}. Are both of the same version?", "code": 1}
    result: Report = {}
    try:
        async with trio.open_nursery() as nursery:

            async def cancel_when_it_goes() -> None:
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some(1):
                        pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_when_it_goes)
            result = await carry(order, tell)
            nursery.cancel_scope.cancel()
    except Exception as surprise:  # noqa: BLE001  the guard of this border: an order that fails must not end the daemon
        cause = foremost(surprise) if isinstance(surprise, BaseExceptionGroup) else surprise
        if isinstance(cause, (trio.BrokenResourceError, trio.ClosedResourceError)):
            raise cause from None  # it has gone, and was being told something
        return _told(order, cause)
    else:
        return {**result, "done": True}


def _told(order: Order, error: BaseException) -> Report:
    if isinstance(error, LazyfsError):
        return {"error": str(error), "code": error.exit_code, "unsupported": isinstance(error, NotNative)}
    _log.error("surprise in %s", type(order).__name__, exc_info=error)
    return {"error": f"lazyfsd failed: {error!r}; its log has the traceback", "code": 1}


async def _receive_line(stream: trio.SocketStream) -> bytes | None:
    data = b""
    with trio.move_on_after(_ORDER_DEADLINE):
        while not data.endswith(b"\n") and len(data) <= MAX_ORDER:
            more = await stream.receive_some(64 << 10)
            if not more:
                return None
            data += more
        return data if data.endswith(b"\n") else None
    return None
