"""The keeper, as the parent of small programs that stand in for the daemon."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
KEEP = "import sys; from pathlib import Path; from lazyfs.daemon.keeper import keep; sys.exit(keep(Path(sys.argv[1]), sys.argv[2:], {}))"
DAEMON = """
import os, signal, sys, time
from pathlib import Path
from lazyfs.daemon.fdstore import FdStore
state = Path(sys.argv[1])
started = len(list(state.glob("start-*")))
(state / f"start-{started}").write_text(str(os.getpid()))
fds = FdStore.from_environment()
"""


class Kept:
    """A keeper in a process of its own, with a program for its daemon."""

    def __init__(self, state: Path) -> None:
        self.state = state
        state.mkdir(parents=True)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, program: str) -> subprocess.Popen[bytes]:
        """Start it. `program` goes on where DAEMON ends: it knows `state`, `fds`, and `started`, how often it was started before."""
        command = [sys.executable, "-c", DAEMON + textwrap.dedent(program), str(self.state)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", KEEP, str(self.state), *command], env=environment)
        self._processes.append(process)
        return process

    def run(self, program: str) -> int:
        """Start it, and wait for its exit code."""
        return self.start(program).wait(PATIENCE_S)

    def await_file(self, name: str) -> str:
        """What is in a file of the state directory, as soon as it is there."""
        pause = select.poll()
        for _ in range(int(PATIENCE_S * 100)):
            if (self.state / name).exists() and (text := (self.state / name).read_text()):
                return text
            pause.poll(10)
        raise AssertionError(f"there is no {name}; {self.log()}")

    def starts(self) -> int:
        """How often the daemon was started."""
        return len(list(self.state.glob("start-*")))

    def log(self) -> str:
        return (self.state / "logs" / "lazyfsd.log").read_text()

    def close(self) -> None:
        for process in self._processes:
            with process:
                process.kill()
        for start in self.state.glob("start-*"):
            if f"\0{self.state}\0".encode() in _command_line(int(start.read_text() or 0)):
                os.kill(int(start.read_text()), signal.SIGKILL)


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    keeper = Kept(tmp_path / "a" / "state")
    yield keeper
    keeper.close()


def test_ends_with_its_daemon(kept: Kept) -> None:
    """A daemon that ends with 0 was not needed any more."""
    assert kept.run("fds.notify('READY=1')") == 0
    assert kept.starts() == 1


def test_one_keeper_a_directory(kept: Kept) -> None:
    """A second one ends at once, with 0, and leaves the socket alone."""
    first = kept.start("fds.notify('READY=1'); time.sleep(1000)")
    kept.await_file("start-0")
    socket_file = (kept.state / "lazyfsd.sock").stat().st_ino
    assert kept.run("raise AssertionError") == 0
    assert first.poll() is None
    assert (kept.state / "lazyfsd.sock").stat().st_ino == socket_file


def test_daemon_that_cannot_start(kept: Kept) -> None:
    """Without stored descriptors it is not restarted; the keeper has its exit code, and the log the reason."""
    assert kept.run("sys.exit('no such thing')") == 1
    assert kept.starts() == 1
    assert "no such thing" in kept.log()


def test_stored_descriptor_survives(kept: Kept) -> None:
    """What a killed daemon gave to keep, just before, is handed to the next one, and the one after that; removed, it is gone."""
    program = """
        kept = fds.get("fuse")
        if started == 0:
            reading, writing = os.pipe()
            os.write(writing, b"hello")
            fds.keep("fuse", reading)
            os.kill(os.getpid(), signal.SIGKILL)
        elif started == 1:
            assert os.read(kept, 3) == b"hel"
            os.kill(os.getpid(), signal.SIGKILL)
        elif started == 2:
            assert os.read(kept, 3) == b"lo"
            fds.drop("fuse")
            fds.notify("READY=1")
            os.kill(os.getpid(), signal.SIGKILL)
        (state / "found").write_text(repr(kept))
    """
    assert kept.run(program) == 0
    assert (kept.state / "found").read_text() == "None"


def test_crashes_while_something_is_kept(kept: Kept) -> None:
    """A daemon that fails to start is tried again for as long as mounts hang on it."""
    program = """
        if started == 0:
            fds.keep("fuse", os.open("/dev/null", os.O_RDONLY))
            fds.notify("READY=1")
        sys.exit(0 if started == 4 else 7)
    """
    assert kept.run(program) == 0
    assert kept.starts() == 5
    assert kept.log().count("ended with 7") == 4


def test_never_comes_up(kept: Kept) -> None:
    """Killed before it is ready, again and again, with nothing to lose: the keeper gives up."""
    assert kept.run("os.kill(os.getpid(), signal.SIGKILL)") == 1
    assert 2 < kept.starts() < 10


def test_killed_on_the_way(kept: Kept) -> None:
    """While mounts hang on it, one that is killed before it is ready, again and again, is started again at once each time."""
    program = """
        if started == 0:
            fds.keep("fuse", os.open("/dev/null", os.O_RDONLY))
        sys.exit(0) if started == 40 else os.kill(os.getpid(), signal.SIGKILL)
    """
    assert kept.run(program) == 0
    assert kept.starts() == 41
    assert "it is started again in" not in kept.log()


def test_clients_wait_in_a_long_path(tmp_path: Path) -> None:
    """The socket is 0600, its path may be longer than a socket's address, and a client that comes while the daemon is dead waits."""
    kept = Kept(tmp_path / ("x" * 120) / "state")
    program = """
        fds.notify("READY=1")
        listener = fds.listener("control")
        while True:
            connection, _ = listener.accept()
            said = connection.recv(100)
            if said == b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            connection.sendall(said.upper())
            connection.close()
    """
    try:
        kept.start(program)
        kept.await_file("start-0")
        assert (kept.state / "lazyfsd.sock").stat().st_mode & 0o777 == 0o600
        assert _ask(kept.state, b"hello") == b"HELLO"
        assert _ask(kept.state, b"die") == b""
        assert _ask(kept.state, b"again") == b"AGAIN"
        assert kept.starts() == 2
    finally:
        kept.close()


def _ask(state: Path, question: bytes) -> bytes:
    folder = os.open(state, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(f"/proc/self/fd/{folder}/lazyfsd.sock")
        os.close(folder)
        client.sendall(question)
        try:
            return client.recv(100)
        except ConnectionResetError:
            return b""


def test_stopped(kept: Kept) -> None:
    """SIGTERM and SIGINT reach the daemon as SIGTERM; the keeper waits for it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        start = f"start-{kept.starts()}"
        process = kept.start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); fds.notify('READY=1'); time.sleep(1000)")
        kept.await_file(start)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
    assert kept.log().count("stopping: received") == 2


def test_asked_what_it_does(kept: Kept) -> None:
    """SIGUSR1 is the daemon's to answer: the keeper passes it on, and neither ends."""
    program = """
        signal.signal(signal.SIGUSR1, lambda *_: (state / "asked").write_text("yes"))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        fds.notify("READY=1")
        (state / "ready").write_text("yes")
        time.sleep(1000)
    """
    process = kept.start(program)
    kept.await_file("ready")
    pause = select.poll()
    while not (kept.state / "asked").exists():
        process.send_signal(signal.SIGUSR1)
        pause.poll(10)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert kept.starts() == 1


def test_log_is_bounded(kept: Kept) -> None:
    """A log of some megabytes is truncated; a copy is kept."""
    program = """
        if started == 0:
            os.write(2, b"x" * (5 << 20))
            fds.notify("READY=1")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert kept.run(program) == 0
    assert len(kept.log()) < 1000
    assert (kept.state / "logs" / "lazyfsd.log.1").stat().st_size >= 5 << 20


def test_strangers_are_not_heard(kept: Kept) -> None:
    """The notify socket has no path and no mode: what is not from the daemon itself is ignored, descriptors included."""
    program = """
        if started == 0:
            fds.notify("READY=1")
            stranger = os.fork()
            if stranger == 0:
                fds.keep("fuse", os.open("/dev/null", os.O_RDONLY))
                os._exit(0)
            os.waitpid(stranger, 0)
            fds.keep("own", os.open("/dev/null", os.O_RDONLY))
            os.kill(os.getpid(), signal.SIGKILL)
        (state / "found").write_text(" ".join(name for name in ("fuse", "own") if fds.get(name) is not None))
    """
    assert kept.run(program) == 0
    assert (kept.state / "found").read_text() == "own"
