"""Serves lazyfsd's control socket: one order a connection, one task each.

A client that disconnects cancels its order; whatever executes the order undoes what is not complete. Only the daemon's own user may send
orders, whatever the mode of the socket.
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
"""Seconds for a client to send its order."""
_ANSWER_DEADLINE: Final = 30.0
"""Seconds for a client to read a report: a stopped client (Ctrl-Z) must not block an order for ever."""
_STOP_MESSAGE_DEADLINE: Final = 1.0
"""Seconds for a client to read the last report of a daemon that stops."""
_ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next accept after a failed one."""
_PEER: Final = struct.Struct("3i")

Notify = Callable[[Step], Awaitable[None]]
Execute = Callable[[Order, Notify], Awaitable[Result]]
"""Executes an order and reports its progress. Raises LazyfsError."""


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
    """Accept orders until cancelled. Then orders in progress are cancelled, and their clients get the text of `stop_message` as an error. If
    it is empty, they are disconnected and send the order to the next daemon.

    Each client counts as one of `uses` from its connection to its last report. A failure of one client or of an accept does not affect
    other clients.
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
            is_over = True  # the client has gone
        finally:
            if not is_over and (text := stop_message()):  # cancelled, and in a group with its tasks
                await _send_stop_message(stream, text)


async def _send_stop_message(stream: trio.SocketStream, text: str) -> None:
    with trio.CancelScope(deadline=trio.current_time() + _STOP_MESSAGE_DEADLINE, shield=True):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(encode(Refusal(text, LocalError.exit_code)))


async def _execute_order(stream: trio.SocketStream, execute: Execute, notify: Notify, failures: Failures) -> bytes:
    """Execute one order; returns the line of the last report."""
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
    except Exception as surprise:  # noqa: BLE001  an order that fails must not stop the daemon
        cause = cause_of(surprise)
        if isinstance(cause, (trio.BrokenResourceError, trio.ClosedResourceError)):
            raise cause from None  # the client has gone while a report was sent
        if isinstance(cause, LazyfsError):
            return encode(Refusal(str(cause), cause.exit_code, isinstance(cause, NotNative)))
        failures.record("order", surprise, type(order).__name__)
        return encode(Refusal(f"lazyfsd failed: {cause!r}; its log has the traceback", 1))
    if result is None:  # the order was cancelled because its client has gone
        raise trio.BrokenResourceError
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
