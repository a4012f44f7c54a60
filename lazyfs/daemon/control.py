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

from lazyfs.errors import LazyfsError, LocalError, NotNative
from lazyfs.live.uses import Uses
from lazyfs.reports.orders import Order
from lazyfs.reports.steps import Step
from lazyfs.reports.wire import MAX_ORDER, Refusal, Result, decode_order, encode, encode_result
from lazyfs.tasks import Failures, Supervisor, cause_of

_log = logging.getLogger(__name__)

_ORDER_DEADLINE: Final = 10.0
"""Seconds that a client has to say what it wants."""
_ANSWER_DEADLINE: Final = 30.0
"""Seconds that a client may leave a report unread: one that is stopped (Ctrl-Z) must not hold an order up for ever."""
_STOP_MESSAGE_DEADLINE: Final = 1.0
"""The same for the last report of a daemon that ends."""
_ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next client is accepted, after one could not be."""
_PEER: Final = struct.Struct("3i")

Notify = Callable[[Step], Awaitable[None]]
Execute = Callable[[Order, Notify], Awaitable[Result]]
"""Carries an order out and reports its progress. Raises LazyfsError."""


def _nothing() -> str:
    return ""


async def serve_control(
    listener: socket.socket,
    user: int,
    execute: Execute,
    uses: Uses,
    tasks: Supervisor,
    stop_message: Callable[[], str] = _nothing,
) -> None:
    """Accept until cancelled; orders under way are cancelled then, and their clients get what `stop_message` says as an error. Where it says
    nothing, they are hung up on, and ask the next daemon.

    Each client counts as one of `uses` from its connection to its last report: an order is under way as long as that. Neither a client
    nor an accept that fails ends another client.
    """
    async with trio.open_nursery() as nursery:
        clients = tasks.within(nursery)
        accepting = trio.socket.from_stdlib_socket(listener)

        async def accept() -> None:
            while True:
                try:
                    connection, _ = await accepting.accept()
                except OSError as error:  # no descriptors left, for example: clients wait in the queue
                    _log.warning("cannot accept an order yet: %s", error)
                    await trio.sleep(_ACCEPT_PAUSE)
                    continue
                stream = trio.SocketStream(connection)
                clients.start_soon("control connection", _serve, stream, user, execute, uses, tasks.failures, stop_message)

        clients.keep_running("accept of orders", accept)


async def _serve(
    stream: trio.SocketStream, user: int, execute: Execute, uses: Uses, failures: Failures, stop_message: Callable[[], str]
) -> None:
    with uses.in_use():
        await _serve_counted(stream, user, execute, failures, stop_message)


async def _serve_counted(
    stream: trio.SocketStream, user: int, execute: Execute, failures: Failures, stop_message: Callable[[], str]
) -> None:
    async with stream:
        peer = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(peer)[1] != user:
            return

        async def send(line: bytes) -> None:
            with trio.move_on_after(_ANSWER_DEADLINE):
                await stream.send_all(line)

        async def notify(step: Step) -> None:
            await send(encode(step))

        is_over = False
        try:
            await send(await _execute_order(stream, execute, notify, failures))
            is_over = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            is_over = True  # it has gone: nobody is left to be told
        finally:
            if not is_over and (text := stop_message()):  # cancelled, and in a group with its tasks
                await _send_stop_message(stream, text)


async def _send_stop_message(stream: trio.SocketStream, text: str) -> None:
    with trio.CancelScope(deadline=trio.current_time() + _STOP_MESSAGE_DEADLINE, shield=True):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(encode(Refusal(text, LocalError.exit_code)))


async def _execute_order(stream: trio.SocketStream, execute: Execute, notify: Notify, failures: Failures) -> bytes:
    """The last report, as it is sent."""
    try:
        line = await _receive_line(stream)
        if line is None:
            return encode(Refusal("the order did not come whole", 2))
        order = decode_order(line)
    except msgspec.DecodeError as error:
        return encode(Refusal(f"lazyfsd does not understand this client: {error}. Are both of the same version?", 1))
    result: Result | None = None
    try:
        async with trio.open_nursery() as nursery:

            async def cancel_on_disconnect() -> None:
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some(1):
                        pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_on_disconnect)
            result = await execute(order, notify)
            nursery.cancel_scope.cancel()
    except Exception as surprise:  # noqa: BLE001  the guard of this border: an order that fails must not end the daemon
        cause = cause_of(surprise)
        if isinstance(cause, (trio.BrokenResourceError, trio.ClosedResourceError)):
            raise cause from None  # it has gone, and was being told something
        if isinstance(cause, LazyfsError):
            return encode(Refusal(str(cause), cause.exit_code, isinstance(cause, NotNative)))
        failures.record("order", surprise, type(order).__name__)
        return encode(Refusal(f"lazyfsd failed: {cause!r}; its log has the traceback", 1))
    assert result is not None
    return encode_result(result)


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
