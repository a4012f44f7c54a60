"""What a start finds of a connection whose daemon died while it was being made, and of a record that is not what it should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from lazyfs.fuse.gate_operations import GateOperations
from lazyfs.fuse.init_record import InitRecord, boot_id, save_record
from lazyfs.fuse.session import Session, is_init
from lazyfs.kernel.fuse_mount import connection_number, connections_at, mount_fuse
from lazyfs.kernel.mounting import unmount
from tests.commands import run
from tests.toy_daemon import PATIENCE_S, ToyDaemon, check
from tests.toy_gate import content

pytestmark = [pytest.mark.root, pytest.mark.fuse]

PASS_ON = 'exec 3<&"$1"; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=fuse; shift; exec "$@"'
NO_ADMIN = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[ToyDaemon]:
    """A daemon that is not started yet. Its lookups of `slow` files take half a second."""
    with ToyDaemon(tmp_path / "state", pause=0.5) as daemon:
        yield daemon


class Half:
    """A connection as somebody leaves it who died after mounting it."""

    def __init__(self, state: Path) -> None:
        self.state, self.gate, self.record = state, state / "gate", state / "init"
        self.gate.mkdir(parents=True)
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        mount_fuse(self.fd, self.gate, "lazyfs-gate", "test")

    def read(self) -> bytes:
        asked = os.read(self.fd, 1 << 21)
        assert is_init(asked)
        return asked

    def save_record(self) -> None:
        async def answer(asked: bytes) -> bytes:
            with Session(GateOperations(None)) as session:  # type: ignore[arg-type]  # nothing is asked of the gate
                return await session.answer(asked)

        asked = self.read()
        number = connection_number(self.fd) or connections_at(self.gate, "lazyfs-gate")[-1]
        save_record(self.record, InitRecord(boot_id(), number, asked, trio.run(answer, asked)))

    def close(self) -> None:
        while connections_at(self.gate, "lazyfs-gate"):
            unmount(self.gate, lazy=True)
        os.close(self.fd)


@pytest.fixture
def half(tmp_path: Path) -> Iterator[Half]:
    left = Half(tmp_path / "state")
    yield left
    left.close()


@pytest.mark.parametrize("step", ["mounted", "read", "saved"])
def test_died_while_greeting(half: Half, step: str) -> None:
    """Dead before it read FUSE_INIT, before it saved the answer, or before it gave it: the next one answers, once and for all."""
    if step == "read":
        half.read()
    if step == "saved":
        half.save_record()
    command = ["bash", "-c", PASS_ON, "bash", str(half.fd), sys.executable, "-m", "tests.toy_gate", str(half.state)]
    number = connections_at(half.gate, "lazyfs-gate")
    with subprocess.Popen(command, pass_fds=[half.fd], stderr=subprocess.PIPE) as daemon:
        while not (half.state / "process").exists():
            # Who touches a gate that nobody serves waits for ever.
            assert daemon.poll() is None, daemon.communicate()
            time.sleep(0.01)
        check(half.gate / "file1-77")
        assert connections_at(half.gate, "lazyfs-gate") == number
        unmount(half.gate)
        _, said = daemon.communicate(timeout=PATIENCE_S)
    assert daemon.returncode == 0
    assert b"taken over" in said


def in_flight(toy: ToyDaemon, name: str) -> tuple[threading.Thread, list[bytes | OSError]]:
    """Begin to read a file, and wait until its lookup has arrived."""
    got: list[bytes | OSError] = []

    def read() -> None:
        try:
            got.append((toy.gate / name).read_bytes())
        except OSError as error:
            got.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while name not in toy.asked():
        thread.join(0.01)
    return thread, got


@pytest.mark.parametrize("damage", ["truncated", "gone", "another boot", "another connection", "no record", "another format"])
def test_record_is_useless(toy: ToyDaemon, damage: str) -> None:
    """Without the record nobody can serve a connection: it ends, with an error for who waits, and a new one is made."""
    process = toy.start()
    thread, got = in_flight(toy, "slow1-77")
    path = toy.state / "init"
    record = msgspec.json.decode(path.read_bytes(), type=InitRecord)
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, 300)
    elif damage == "no record":
        path.write_bytes(os.urandom(100))
    else:
        changes = {"another boot": {"boot": "x"}, "another connection": {"connection": 1}, "another format": {"format": 2}}
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, **changes[damage])))
    os.kill(process, signal.SIGKILL)
    toy.await_process(process)
    thread.join(PATIENCE_S)
    assert isinstance(got[0], OSError)
    check(toy.gate / "file1-77")
    assert len(toy.connections()) == 1
    assert "does not describe the FUSE connection" in toy.log()


def test_another_libfuse(toy: ToyDaemon) -> None:
    """A libfuse that would have answered differently refuses, in words, and leaves the connection to one that fits."""
    process = toy.start()
    thread, got = in_flight(toy, "slow1-77")
    path = toy.state / "init"
    before = path.read_bytes()
    record = msgspec.json.decode(before, type=InitRecord)
    answered = bytearray(record.answered)
    answered[-40] ^= 1
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, answered=bytes(answered))))
    os.kill(process, signal.SIGKILL)
    while "this libfuse answers" not in toy.log():
        thread.join(0.01)
    assert f"/sys/fs/fuse/connections/{record.connection}/abort" in toy.log()
    path.write_bytes(before)
    toy.await_process(process)
    thread.join(PATIENCE_S)
    assert got == [content("slow1-77")]


def test_kernel_refuses(toy: ToyDaemon) -> None:
    """Without the right to mount the daemon says so and ends, and its keeper does not try again."""
    done = run(*NO_ADMIN, sys.executable, "-m", "tests.toy_gate", "--keeper", toy.state, code=5)
    assert done.stderr == b""
    assert toy.log().count("cannot mount at") == 1
    assert "root" in toy.log()
    assert not (toy.state / "init").exists()


def test_aborted_connection(toy: ToyDaemon, tmp_path: Path) -> None:
    """Somebody ends the connection by hand: the daemon ends, and the next start takes the dead mount away."""
    toy.start()
    assert toy.keeper is not None and toy.keeper.stderr is not None
    number = toy.connections()[-1]
    control = tmp_path / "control"
    control.mkdir()
    run("mount", "-t", "fusectl", "fusectl", control)
    try:
        (control / str(number) / "abort").write_text("1")
    finally:
        run("umount", control)
    assert toy.wait() == 0
    toy.keeper.stderr.close()
    (toy.state / "process").unlink()
    toy.start()
    check(toy.gate / "file1-77")
