"""The FUSE connection outlives the daemon: killed under readers, left by killed callers, found in every state that a death leaves.

The gate is a toy; keeper, session and kernel are real. Every moment of a kill is drawn from a seed that a failure prints;
LAZYFS_SEED repeats it.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import run
from tests.lazyfsd import moments
from tests.reader import Report
from tests.toy_daemon import PATIENCE_S, ToyDaemon, check
from tests.toy_gate import content

pytestmark = [pytest.mark.root, pytest.mark.fuse]

READERS = 8
PAUSE = 0.02
"""Seconds that each answer takes."""
MOST_BETWEEN = 40
"""Files that all readers together ask for from one kill to the next: fewer than there are."""


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[ToyDaemon]:
    """A daemon that is not started yet, without pauses."""
    with ToyDaemon(tmp_path / "state") as daemon:
        yield daemon


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_under_readers(kills: int, tmp_path: Path, seed: str) -> None:
    """kill -9 under 8 readers of files that were never read: no error, every byte right, and requests were in flight."""
    chance = random.Random(seed)
    readers = []
    with ToyDaemon(tmp_path / "state", pause=PAUSE) as toy:
        toy.start()
        for number in range(READERS):
            truth = tmp_path / f"truth-{number}"
            names = [f"slow{number * 1000 + file + 1}-20000" for file in range(20 + 6 * kills)]
            truth.write_bytes(pickle.dumps({name: content(name) for name in names}))
            reader = subprocess.Popen([sys.executable, "-m", "tests.reader"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert reader.stdin is not None
            reader.stdin.write(json.dumps({"root": str(toy.gate), "truth": str(truth), "seed": number}).encode() + b"\n")
            reader.stdin.close()
            reader.stdin = None
            readers.append(reader)
        for _ in range(kills):
            enough = len(toy.asked()) + chance.randrange(1, MOST_BETWEEN)
            assert any(len(toy.asked()) >= enough for _ in moments()), "the readers ask for nothing more"
            time.sleep(chance.uniform(0, PAUSE))
            toy.kill()
        for reader in readers:
            said, _ = reader.communicate(timeout=PATIENCE_S)
            *dots, last = said.splitlines()
            report = Report(**json.loads(last))
            assert (report.wrong, report.away, len(report.right)) == ([], [], len(dots)), f"LAZYFS_SEED={seed}"
        asked_again = sum(count - 1 for count in Counter(toy.asked()).values())
        assert asked_again > kills, f"nothing was in flight: LAZYFS_SEED={seed}"
        assert toy.log().count("taken over") == kills


@pytest.mark.parametrize("callers", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_killed_callers(callers: int, tmp_path: Path, seed: str) -> None:
    """Callers killed at random moments of their lookups and reads, while others read: the daemon goes on answering."""
    with ToyDaemon(tmp_path / "state", pause=0.005) as toy:
        process = toy.start()
        half = [sys.executable, "-m", "tests.killed_callers", str(toy.gate), str(callers // 2)]
        both = [subprocess.Popen([*half, f"{seed}-{number}"]) for number in range(2)]
        for number in range(200):
            name = f"file{10_000 + number}-5000"
            check(toy.gate / name)
        for each in both:
            assert each.wait(PATIENCE_S) == 0
        check(toy.gate / "slow9-300000")
        assert toy.await_process(0) == process, "it had to be started again"
        # A request that vanishes at the worst moment begins the loop anew; that is to be rare, and never a loop of its own.
        assert toy.log().count("restarting the loop") < callers // 10
        assert "fuse_reply" not in toy.log()


def test_stuck_readers_leave_room(toy: ToyDaemon) -> None:
    """200 callers whose lookups, and then whose reads, get no answer: another is answered all the same."""
    toy.start()
    done: list[bytes] = []

    def read(name: str) -> None:
        done.append((toy.gate / name).read_bytes())

    stuck = [threading.Thread(target=read, args=(f"stuck{number + 1}-1000000",)) for number in range(200)]
    for thread in stuck:
        thread.start()
    while len(set(toy.asked())) < len(stuck):
        stuck[0].join(0.01)
    check(toy.gate / "file1-300000")
    (toy.state / "lookups").touch()
    while len(set(toy.read())) < len(stuck):
        stuck[0].join(0.01)
    check(toy.gate / "file2-300000")
    assert done == []
    (toy.state / "reads").touch()
    for thread in stuck:
        thread.join(PATIENCE_S)
    assert {len(data) for data in done} == {1_000_000} and len(done) == len(stuck)


def test_ends_with_its_last_user(toy: ToyDaemon) -> None:
    """Unmounted, but held, it still answers, after a kill too; with the last holder it ends, its keeper as well, and nothing is left."""
    toy.start()
    holder = os.open(toy.gate, os.O_PATH | os.O_DIRECTORY)
    run("umount", "--lazy", str(toy.gate))
    assert toy.connections() == []
    assert os.stat("file1-77", dir_fd=holder).st_size == 77
    toy.kill()
    assert os.stat("file2-77", dir_fd=holder).st_size == 77
    os.close(holder)
    assert toy.wait() == 0
    assert "taken over, unmounted already" in toy.log()
    assert "has ended" in toy.log()
    assert not (toy.state / "init").exists()


def test_stopped(toy: ToyDaemon) -> None:
    """SIGTERM to the keeper reaches the daemon, also one that is just starting again."""
    toy.start()
    assert toy.keeper is not None
    os.kill(int((toy.state / "process").read_text()), signal.SIGKILL)
    toy.keeper.terminate()
    assert toy.wait() == 0
    assert toy.connections() == []


def test_daemon_outlives_its_keeper(toy: ToyDaemon, tmp_path: Path) -> None:
    """A killed keeper takes nothing with it: the daemon serves on, and holds the lock, so that no second one starts."""
    toy.start()
    assert toy.keeper is not None
    toy.keeper.kill()
    toy.keeper.communicate()
    check(toy.gate / "file1-77")
    run(sys.executable, "-m", "tests.toy_gate", "--keeper", toy.state)
    check(toy.gate / "file2-77")


def test_everything_killed(toy: ToyDaemon) -> None:
    """Keeper and daemon killed: the connection is lost. The next ones find the dead mount, take it away and make a new one."""
    old = toy.start()
    assert toy.keeper is not None
    toy.keeper.kill()
    toy.keeper.communicate()
    os.kill(old, signal.SIGKILL)
    (toy.state / "process").unlink()
    toy.start()
    check(toy.gate / "file1-77")
    assert len(toy.connections()) == 1
    assert "taken over" not in toy.log()
