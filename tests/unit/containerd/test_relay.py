"""From one socket to another: bytes both ways, ends, and a target that is not there."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from lazyfs.containerd.handshakes import ACKNOWLEDGEMENT, PREFACE, SETTINGS
from lazyfs.containerd.relay import relay
from lazyfs.tasks import Supervisor
from tests.conftest import LogWatch

LARGE = random.Random(1).randbytes(3 << 20)
Answer = Callable[[trio.SocketStream], Awaitable[None]]


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, until it ends."""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


@asynccontextmanager
async def answering(path: Path, answer: Answer) -> AsyncIterator[None]:
    """A server at `path`."""
    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(os.fspath(path))
        listening.listen()
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_listeners, partial(_answer, answer), [trio.SocketListener(listening)])
            nursery.start_soon(serve)
            yield
            nursery.cancel_scope.cancel()


async def _answer(answer: Answer, stream: trio.SocketStream) -> None:
    """What is left of the handshake comes first."""
    assert await all_of(stream, len(PREFACE)) == PREFACE
    await answer(stream)


@asynccontextmanager
async def relaying(listener: socket.socket, folder: Path, answer: Answer | None = echo) -> AsyncIterator[None]:
    """A relay to a server, or to a socket without one."""
    async with AsyncExitStack() as stack:
        if answer is not None:
            await stack.enter_async_context(answering(folder / "inner", answer))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(relay, listener, folder / "inner", Supervisor(nursery))
        yield
        nursery.cancel_scope.cancel()


class Caller(trio.abc.AsyncResource):
    """gRPC's end of a connection, with nothing to say but the handshake: bytes that are sent and received are what follows it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._expected = SETTINGS
        self.send_all, self.send_eof = stream.send_all, stream.send_eof

    async def receive_some(self, count: int | None = None) -> bytes:
        while self._expected:
            data = await self._stream.receive_some(len(self._expected))
            assert data and self._expected.startswith(data)
            self._expected = self._expected[len(data) :]
        try:
            return bytes(await self._stream.receive_some(count))
        except trio.BrokenResourceError:  # ended before it heard all that was said
            return b""

    async def aclose(self) -> None:
        await self._stream.aclose()


async def call(folder: Path) -> Caller:
    """Also while there is no server yet."""
    stream = await trio.open_unix_socket(folder / "outer")
    await stream.send_all(PREFACE + ACKNOWLEDGEMENT)
    return Caller(stream)


async def all_of(stream: Caller | trio.SocketStream, count: int = -1) -> bytes:
    """All that comes until the end, or until it has so many bytes."""
    found = bytearray()
    while len(found) != count and (data := await stream.receive_some(max(0, count - len(found)) or None)):
        found += data
    return bytes(found)


async def send(stream: Caller, data: bytes) -> None:
    await stream.send_all(data)


async def test_bytes_go_both_ways(folder: Path, listener: socket.socket) -> None:
    """Megabytes in both directions at once, in order; who is slow holds only himself back."""
    async with relaying(listener, folder), trio.open_nursery() as nursery:
        async with await call(folder) as slow, await call(folder) as quick:
            nursery.start_soon(send, slow, LARGE)
            nursery.start_soon(send, quick, LARGE)
            assert await all_of(quick, len(LARGE)) == LARGE
            assert await all_of(slow, len(LARGE)) == LARGE


async def test_many_connections(folder: Path, listener: socket.socket) -> None:
    """Each has its own."""

    async def call_as(number: int) -> None:
        async with await call(folder) as stream:
            await stream.send_all(b"%d" % number * 100)
            assert await all_of(stream, len(b"%d" % number) * 100) == b"%d" % number * 100

    async with relaying(listener, folder), trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(call_as, number)


async def test_a_target_that_is_not_there(folder: Path, listener: socket.socket, expect_log: LogWatch) -> None:
    """Who calls then is hung up on; who calls when it is there is served."""
    expect_log("cannot serve a call of containerd: .*No such file")
    async with relaying(listener, folder, None):
        async with await call(folder) as stream:
            assert await all_of(stream) == b""
        async with answering(folder / "inner", echo), await call(folder) as stream:
            await stream.send_all(b"hello")
            assert await all_of(stream, 5) == b"hello"


async def test_callers_wait_until_there_is_a_relay(folder: Path, listener: socket.socket) -> None:
    """A call that was sent while no daemon ran is served by the next one; the end of a relay leaves the socket open."""
    async with relaying(listener, folder), await call(folder) as stream:
        await stream.send_all(b"first")
        assert await all_of(stream, 5) == b"first"
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    (folder / "inner").unlink()
    async with await call(folder) as early:
        await early.send_all(b"early")
        async with relaying(listener, folder):
            assert await all_of(early, 5) == b"early"
        assert await all_of(early) == b"", "a connection ends with its relay"


async def test_the_caller_ends(folder: Path, listener: socket.socket) -> None:
    """What it sent arrives, and then the end."""
    arrived: list[bytes] = []
    ended = trio.Event()

    async def take(stream: trio.SocketStream) -> None:
        arrived.append(await all_of(stream))
        ended.set()

    async with relaying(listener, folder, take):
        async with await call(folder) as stream:
            await stream.send_all(LARGE)
        await ended.wait()
    assert arrived == [LARGE]


async def test_the_server_ends(folder: Path, listener: socket.socket) -> None:
    """What it sent arrives, and then the end, although the caller has not ended."""

    async def say(stream: trio.SocketStream) -> None:
        await stream.send_all(LARGE)
        await stream.aclose()

    async with relaying(listener, folder, say), await call(folder) as stream:
        assert await all_of(stream) == LARGE


async def test_a_half_closed_connection_ends(folder: Path, listener: socket.socket) -> None:
    """HTTP/2 closes both directions: earlier bytes arrive, both ends see the close, and nothing is left waiting."""
    arrived: list[bytes] = []

    async def take(stream: trio.SocketStream) -> None:
        arrived.append(await all_of(stream))
        await trio.sleep_forever()

    async with relaying(listener, folder, take), await call(folder) as stream:
        await stream.send_all(LARGE)
        await stream.send_eof()
        assert await all_of(stream) == b""
        assert arrived == [LARGE]


async def test_no_descriptors_left(
    folder: Path, listener: socket.socket, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """Callers wait in the queue, and the relay does not end."""
    expect_log("cannot accept a call of containerd yet: .*Too many open files")
    failures = iter([errno.EMFILE, errno.ENFILE])
    wrapped = trio.socket.from_stdlib_socket(listener)
    real = type(wrapped).accept

    async def accept(self: trio.socket.SocketType) -> object:
        if self.getsockname() == os.fspath(folder / "outer") and (number := next(failures, None)) is not None:
            raise OSError(number, os.strerror(number))
        return await real(self)

    monkeypatch.setattr(type(wrapped), "accept", accept)
    async with relaying(listener, folder), await call(folder) as stream:
        await stream.send_all(b"hello")
        assert await all_of(stream, 5) == b"hello"
    assert next(failures, None) is None
