"""The beginning of a handshake, before there is a server: who is accepted, what is taken out again, and gRPC's own word on both."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.containerd.handshakes import ACKNOWLEDGEMENT, PREFACE, SETTINGS, AcknowledgementFilter, Handshakes
from lazyfs.containerd.relay import relay
from lazyfs.tasks import Supervisor

METHOD = "/test.Echo/Echo"
PATIENCE_S = 30


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + (1).to_bytes(4) + payload


frames = st.builds(frame, st.integers(0, 9), st.integers(0, 255), st.binary(max_size=40) | st.just(SETTINGS + ACKNOWLEDGEMENT))


@given(st.lists(frames), st.none() | st.lists(frames | st.just(ACKNOWLEDGEMENT)), st.data())
def test_one_acknowledgement_is_taken_out(before: list[bytes], after: list[bytes] | None, data: st.DataObject) -> None:
    """The first, wherever the stream is cut; nothing that only looks like it inside of another frame, and none that follows."""
    said = PREFACE + b"".join(before)
    passed_on = said + b"".join(after or [])
    if after is not None:
        said += ACKNOWLEDGEMENT + b"".join(after)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)))))
    rest = AcknowledgementFilter().filter
    assert b"".join(rest(said[start:end]) for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True)) == passed_on


def call(folder: Path) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(PATIENCE_S)
    caller.connect(os.fspath(folder / "outer"))
    return caller


def test_callers_hear_settings(folder: Path, listener: socket.socket) -> None:
    """At once, each; afterwards they belong to who has stopped it, who finds the next one in the queue."""
    with Handshakes({"name": listener.fileno()}, patience=0) as handshakes, call(folder) as first, call(folder) as second:
        assert [caller.recv(100) for caller in (first, second)] == [SETTINGS, SETTINGS]
        begun = handshakes.stop()
        assert handshakes.stop() == {}
        with call(folder) as third, listener.accept()[0]:
            third.setblocking(False)
            with pytest.raises(BlockingIOError):
                third.recv(100)
        for connection in begun["name"]:
            connection.close()
        assert [caller.recv(100) for caller in (first, second)] == [b"", b""]


def test_nobody_is_accepted_early(folder: Path, listener: socket.socket) -> None:
    """A connection in the queue outlives the daemon."""
    with call(folder) as early:
        with Handshakes({"name": listener.fileno()}, patience=PATIENCE_S) as handshakes:
            assert handshakes.stop() == {"name": []}
        with listener.accept()[0] as accepted:
            accepted.sendall(b"a server")
            assert early.recv(100) == b"a server"


def test_a_process_of_some_age_accepts_at_once(folder: Path, listener: socket.socket) -> None:
    """Callers have waited for Python to come up, too."""
    program = "import sys, time; from lazyfs.containerd.handshakes import Handshakes; time.sleep(0.6); "
    program += "handshakes = Handshakes({'name': int(sys.argv[1])}); print(handshakes._patience); handshakes.stop()"
    command = [sys.executable, "-c", program, str(listener.fileno())]
    assert subprocess.run(command, pass_fds=[listener.fileno()], capture_output=True, check=True).stdout == b"0.0\n"


def test_left_without_a_server_they_end(folder: Path, listener: socket.socket) -> None:
    """If a daemon does not start, its callers see the end of the connection."""
    with call(folder) as caller:
        with Handshakes({"name": listener.fileno()}, patience=0):
            assert caller.recv(100) == SETTINGS
        assert caller.recv(100) == b""


async def test_grpc_goes_on_where_it_was_begun(folder: Path, listener: socket.socket) -> None:
    """Its client is content with the handshake while there is no server, and its server with a client that has had one."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    with Handshakes({"name": listener.fileno()}, patience=0) as handshakes:
        with closing(grpc.insecure_channel(f"unix:{folder}/outer")) as channel:
            echo = channel.unary_unary(METHOD)
            await trio.to_thread.run_sync(grpc.channel_ready_future(channel).result, PATIENCE_S)
            waiting = echo.future(b"early", timeout=PATIENCE_S)
            server = grpc.server(ThreadPoolExecutor(2))
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler})])
            server.add_insecure_port(f"unix:{folder}/inner")
            server.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, listener, folder / "inner", Supervisor(nursery), handshakes.stop()["name"])
                assert await trio.to_thread.run_sync(waiting.result, PATIENCE_S) == b"early"
                later = [echo.future(b"%d" % number, timeout=PATIENCE_S) for number in range(50)]
                for number, answer in enumerate(later):
                    assert await trio.to_thread.run_sync(answer.result, PATIENCE_S) == b"%d" % number
                nursery.cancel_scope.cancel()
            await trio.to_thread.run_sync(server.stop(0).wait)
