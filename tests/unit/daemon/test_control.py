"""Client and daemon across a real socket."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.daemon.client import Client, DaemonUnreachable
from lazyfs.daemon.control import Execute, Notify, serve_control
from lazyfs.daemon.holding import SOCKET_NAME
from lazyfs.errors import MountFailed, NotNative
from lazyfs.live.uses import Uses
from lazyfs.reports.orders import Order, PruneOrder, StatusOrder, UnmountOrder
from lazyfs.reports.results import PruneResult, UnmountResult
from lazyfs.reports.steps import Accepted, Note, Progress, Step
from lazyfs.reports.wire import MAX_ORDER, HasResult, Refused, Result
from lazyfs.tasks import Supervisor

R = TypeVar("R")
DONE = PruneResult(objects=42, documents=0, bytes=0, held_bytes=0, used_bytes=0)


@asynccontextmanager
async def listening(
    folder: Path, execute: Execute, user: int = os.geteuid(), uses: Uses | None = None, stop_message: Callable[[], str] = str
) -> AsyncIterator[Client]:
    """A daemon's socket in `folder`, whatever the length of its path, and a client for it."""
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(folder, os.O_PATH)
        listener.bind(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
        os.close(descriptor)
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_control, listener, user, execute, uses or Uses(), Supervisor(nursery), stop_message)
            yield Client(folder)
            nursery.cancel_scope.cancel()


async def call(client: Client, order: HasResult[R]) -> list[Step | R]:
    return await trio.to_thread.run_sync(lambda: list(client.call(order, start=False)), abandon_on_cancel=True)


async def test_reports_come_in_order(tmp_path: Path) -> None:
    """A client sees every report, the last one the result; also in a folder whose path no socket address could hold."""
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    seen: list[Order] = []
    steps = [Accepted(), Note("a layer"), Progress("fetching", 1, 2), Progress("fetching", 1, 2, "it stands still")]

    async def execute(order: Order, notify: Notify) -> Result:
        seen.append(order)
        for step in steps:
            await notify(step)
        return UnmountResult("/a", 7)

    async with listening(folder, execute) as client:
        order = UnmountOrder("/a\nb\udcff".encode("utf-8", "surrogateescape").decode("utf-8", "replace"), lazy=True)
        assert await call(client, order) == [*steps, UnmountResult("/a", 7)]
        assert seen == [order]


async def test_errors_keep_their_words_and_exit_code(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    """An error of ours arrives as it would from the command line; a bug ends one order, is logged, and nothing else."""
    errors: list[Exception] = [
        MountFailed("it is busy", hint="Wait"),
        NotNative("no EROFS"),
        ExceptionGroup("a nursery's", [MountFailed("inside")]),
        ZeroDivisionError("a bug"),
    ]

    async def execute(order: Order, notify: Notify) -> Result:
        raise errors.pop(0)

    expect_log("order of StatusOrder has failed: ZeroDivisionError")
    async with listening(tmp_path, execute) as client:
        for text, code, unsupported in (
            ("it is busy. Wait", 5, False),
            ("no EROFS", 5, True),
            ("inside", 5, False),
            ("ZeroDivision", 1, False),
        ):
            with pytest.raises(Refused, match=text) as caught:
                await call(client, StatusOrder())
            assert (caught.value.exit_code, caught.value.unsupported) == (code, unsupported)


@pytest.mark.parametrize("text", ["it was told to end", ""])
async def test_a_daemon_that_ends_says_so(tmp_path: Path, text: str) -> None:
    """Orders that are given up end with its word; where it has none, the next daemon is to be asked."""
    under_way = trio.Event()

    async def execute(order: Order, notify: Notify) -> Result:
        under_way.set()
        await trio.sleep_forever()
        raise AssertionError

    failures: list[Exception] = []

    async def ask(client: Client) -> None:
        try:
            await call(client, StatusOrder())
        except (Refused, DaemonUnreachable) as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        async with listening(tmp_path, execute, stop_message=lambda: text) as client:
            nursery.start_soon(ask, client)
            await under_way.wait()
            (tmp_path / SOCKET_NAME).unlink()
    (error,) = failures
    assert (str(error) == text and isinstance(error, Refused) and error.exit_code == 5) if text else "no lazyfsd" in str(error)


async def test_a_client_that_goes_cancels_its_order(tmp_path: Path) -> None:
    """Ctrl-C in the client ends its order. That is not a failure of lazyfsd, and is not logged as one."""
    under_way, cancelled = trio.Event(), trio.Event()

    async def execute(order: Order, notify: Notify) -> Result:
        under_way.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        return DONE

    uses = Uses()
    async with listening(tmp_path, execute, uses=uses):
        stream = await trio.open_unix_socket(str(tmp_path / SOCKET_NAME))
        await stream.send_all(b'{"type": "status"}\n')
        await under_way.wait()
        await stream.aclose()
        with trio.fail_after(5):
            await cancelled.wait()
            await uses.wait_until_unused(lambda: 0.0)


async def test_an_order_counts_from_the_connection_to_its_last_report(tmp_path: Path) -> None:
    """As long as that, the daemon does not end for want of users."""
    uses = Uses()
    counted: list[int] = []

    async def execute(order: Order, notify: Notify) -> Result:
        counted.append(uses.count)
        return DONE

    async with listening(tmp_path, execute, uses=uses) as client:
        stream = await trio.open_unix_socket(str(tmp_path / SOCKET_NAME))
        with trio.fail_after(5):
            while uses.count < 1:
                await trio.lowlevel.checkpoint()
        await call(client, PruneOrder())
        assert counted == [2]
        await stream.aclose()
        with trio.fail_after(5):
            while uses.count:
                await trio.lowlevel.checkpoint()


async def test_half_an_order_is_waited_for_ten_seconds(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Not for ever: a client that is stopped would keep the daemon from its end."""

    async def execute(order: Order, notify: Notify) -> Result:
        raise AssertionError("it was carried out")

    uses = Uses()
    async with listening(tmp_path, execute, uses=uses):
        stream = await trio.open_unix_socket(str(tmp_path / SOCKET_NAME))
        began = trio.current_time()
        await stream.send_all(b'{"type": "sta')
        with trio.fail_after(100):
            assert b"did not come whole" in await stream.receive_some()
        assert trio.current_time() - began == pytest.approx(10)
        assert await stream.receive_some() == b""
        await wait_all_tasks_blocked()
        assert not uses.count
        await stream.aclose()


@contextmanager
def without_descriptors() -> Iterator[None]:
    """No file can be opened in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptor_for_a_client(tmp_path: Path, autojump_clock: MockClock, expect_log: Callable[[str], None]) -> None:
    """EMFILE passes: the client waits in the queue meanwhile, and the daemon goes on."""
    expect_log("cannot accept an order yet.*Too many open files")

    async def execute(order: Order, notify: Notify) -> Result:
        return DONE

    async with listening(tmp_path, execute):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / SOCKET_NAME))  # and nothing else can run before the last descriptor has gone
            with without_descriptors():
                await trio.sleep(5)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
            await stream.send_all(b'{"type": "status"}\n')
            assert b"42" in await stream.receive_some()


async def test_other_users_are_not_answered(tmp_path: Path) -> None:
    """The socket's mode is one guard, the kernel's word about the peer another."""

    async def execute(order: Order, notify: Notify) -> Result:
        raise AssertionError("it was carried out")

    async with listening(tmp_path, execute, user=os.geteuid() + 1):
        stream = await trio.open_unix_socket(str(tmp_path / SOCKET_NAME))
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await stream.aclose()


@pytest.mark.parametrize(
    "line", [b"hello\n", b'{"type": "fly"}\n', b'{"type": "mount"}\n', b"x" * (MAX_ORDER + 2), b"\xff\n", b'{"type": "status"}']
)
async def test_nonsense_is_refused(line: bytes, tmp_path: Path) -> None:
    """What is not an order, or no end of one, gets an error and costs nothing."""

    async def execute(order: Order, notify: Notify) -> Result:
        raise AssertionError("it was carried out")

    async with listening(tmp_path, execute):
        stream = await trio.open_unix_socket(str(tmp_path / SOCKET_NAME))
        await stream.send_all(line)
        stream.socket.shutdown(socket.SHUT_WR)
        with trio.fail_after(5):
            answer = b""
            while more := await stream.receive_some():
                answer += more
        assert b'"error"' in answer
        await stream.aclose()


async def test_nobody_there(tmp_path: Path) -> None:
    """No folder, no socket, a socket without a listener: each has a clear message, and none starts a daemon."""
    for folder in (tmp_path / "none", tmp_path):
        assert not Client(folder).is_running()
        with pytest.raises(DaemonUnreachable, match="no lazyfsd"):
            await call(Client(folder), StatusOrder())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(DaemonUnreachable, match="no lazyfsd"):
        await call(Client(tmp_path), StatusOrder())
