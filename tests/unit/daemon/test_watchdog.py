"""When WATCHDOG=1 is sent to systemd, and when not."""

from __future__ import annotations

import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import trio
import trio.lowlevel

from lazyfs.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from lazyfs.daemon.fdstore import FdStore
from lazyfs.daemon.watchdog import feed
from tests.conftest import LogWatch

LONG = 240.0
"""Seconds, a quarter of which is the deadline of a round: never reached."""
SHORT = 1.0


class Answering(snapshots_pb2_grpc.SnapshotsServicer):
    """A service that knows no snapshot."""

    def Stat(  # noqa: N802
        self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        context.abort(grpc.StatusCode.NOT_FOUND, "there is none")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    """The socket of one that answers."""
    path = tmp_path / "answering.sock"
    server = grpc.server(ThreadPoolExecutor(1))
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(Answering(), server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield path
    server.stop(None).wait()


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(40)  # no message fails a test, and does not hang it
        yield listening


async def describe() -> str:
    return "all is well"


async def test_fed_when_all_have_answered(tmp_path: Path, notify: socket.socket, service: Path) -> None:
    """After the gate and each containerd's service have answered, with the status."""
    fds = FdStore({}, notify.getsockname(), LONG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, fds, tmp_path, {"one": service, "two": service}, describe)
        message = await trio.to_thread.run_sync(notify.recv, 1000)
        nursery.cancel_scope.cancel()
    assert message.decode().splitlines() == ["WATCHDOG=1", "STATUS=all is well"]


async def test_not_fed_when_the_service_is_silent(
    tmp_path: Path, notify: socket.socket, service: Path, expect_log: LogWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket that accepts calls and never answers: no WATCHDOG=1, and the log names it."""
    expect_log("not reporting to the watchdog of systemd: no answer from .*the service for stuck")
    fds = FdStore({}, notify.getsockname(), SHORT)
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / "stuck.sock"))
        stuck.listen()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed, fds, tmp_path, {"one": service, "stuck": Path(stuck.getsockname())}, describe)
                while "no answer" not in caplog.text:  # noqa: ASYNC110  logging knows no events
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
    notify.setblocking(False)
    with pytest.raises(BlockingIOError):
        notify.recv(1000)


async def test_not_fed_when_the_gate_is_wrong(tmp_path: Path, notify: socket.socket, expect_log: LogWatch) -> None:
    """A gate that has the name that nothing has is none of ours."""
    expect_log("no answer from the gate")
    (tmp_path / "lazyfsd-watchdog").touch()
    with trio.move_on_after(SHORT):
        await feed(FdStore({}, notify.getsockname(), SHORT), tmp_path, {}, describe)
    notify.setblocking(False)
    with pytest.raises(BlockingIOError):
        notify.recv(1000)


async def test_fed_without_descriptors(
    tmp_path: Path, notify: socket.socket, service: Path, expect_log: LogWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Want of them is not a standstill: no process can be started to ask the gate, no connection be accepted, and the loop turns."""
    for line in (
        "no answer from the service for stuck",
        "cannot probe the gate: .*Too many open files",
        "cannot probe the service for stuck",
    ):
        expect_log(line)
    fds = FdStore({}, notify.getsockname(), SHORT)
    fds.notify("READY=1")
    assert notify.recv(1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as stuck, trio.fail_after(60):
        stuck.bind(str(tmp_path / "stuck.sock"))
        stuck.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed, fds, tmp_path, {"one": service, "stuck": Path(stuck.getsockname())}, describe)
            while "no answer" not in caplog.text:  # noqa: ASYNC110  logging knows no events
                await trio.sleep(0.05)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                message = await trio.to_thread.run_sync(notify.recv, 1000)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            nursery.cancel_scope.cancel()
    assert message.decode().splitlines() == ["WATCHDOG=1", "STATUS=all is well"]


async def test_fed_without_threads(
    tmp_path: Path, notify: socket.socket, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no thread or process can be started: an error in it does not end the feeding."""

    async def fail() -> bool:
        raise RuntimeError("can't start new thread")

    async def asks(_socket: Path, _deadline: float) -> Callable[[], Awaitable[bool]]:
        return fail

    expect_log("cannot probe the service for one: can't start new thread")
    monkeypatch.setattr("lazyfs.daemon.watchdog._service_probe", asks)
    fds = FdStore({}, notify.getsockname(), LONG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, fds, tmp_path, {"one": tmp_path}, describe)
        assert b"WATCHDOG=1" in await trio.to_thread.run_sync(notify.recv, 1000)
        nursery.cancel_scope.cancel()


async def test_nobody_watches(tmp_path: Path) -> None:
    """Without a watchdog nothing is asked."""
    await feed(FdStore({}, ""), tmp_path, {"none": tmp_path / "none"}, describe)
