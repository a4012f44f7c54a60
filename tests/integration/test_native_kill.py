"""Native mounts outlive their lazyfsd: killed under readers, left by killed callers, gone, and gone with its keeper.

Every moment of a kill is drawn from a seed that a failure prints; LAZYFS_SEED repeats it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.commands import Lazyfs, run
from tests.lazyfsd import PATIENCE_S, Lazyfsd, moments, object_name, remains
from tests.lying_registry import LyingRegistry, silent
from tests.readers import Readers
from tests.small_image import SmallImage, build_of, large_file, small_file

pytestmark = [pytest.mark.fuse, pytest.mark.root]

READERS = 8
FILES = 64
"""More than are read from one kill to the next."""
LATE = 0.02


def build_many(folder: Path, count: int) -> SmallImage:
    """`count` files of one chunk each, too large for one to bring its neighbour along, and for each reader one of many chunks."""
    chance = random.Random(4)
    files = {f"files/{number % 50}/{number}": chance.randbytes(33_000 + number) for number in range(count)}
    files |= {f"large/{number}": chance.randbytes(600_000 + number) for number in range(READERS)}
    return build_of(folder, files)


def shares(image: SmallImage) -> list[dict[str, bytes]]:
    """The files of an image, dealt out to the readers."""
    files = list(image.files.items())
    return [dict(files[number::READERS]) for number in range(READERS)]


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_under_readers(kills: int, lazyfs: Lazyfs, reader: Readers, seed: str, tmp_path: Path) -> None:
    """kill -9 under 8 readers of files that are missing, from a registry that answers late: no error, every byte right."""
    image = build_many(tmp_path, kills * FILES)
    chance = random.Random(seed)
    with LyingRegistry(image.layout) as registry:
        registry.server.late = LATE
        with lazyfs.mounted(f"{registry.image}:v1", "--background", "off", "--plain-http", mode="native") as root, reader:
            lazyfsd = Lazyfsd(lazyfs.store)
            readers = [reader(root, share, number) for number, share in enumerate(shares(image))]
            in_flight = []
            for _ in range(kills):
                time.sleep(chance.uniform(0, 0.3))
                assert any(each.is_running() for each in readers), "everything was here too early"
                in_flight.append(lazyfsd.kill())
            for each in readers:
                each.check()
            assert sum(count > 0 for count in in_flight) > kills // 3, in_flight
            assert lazyfsd.log().count("taken over") >= kills


@pytest.mark.parametrize("callers", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_killed_callers(callers: int, lazyfs: Lazyfs, reader: Readers, seed: str, tmp_path: Path) -> None:
    """Callers of missing files killed at random moments, while others read: the daemon goes on answering, none takes over."""
    image = build_many(tmp_path, callers + 200)
    names = list(image.files)
    halves = names[: callers // 2], names[callers // 2 : callers]
    with LyingRegistry(image.layout) as registry:
        registry.server.late = LATE
        with lazyfs.mounted(f"{registry.image}:v1", "--background", "off", "--plain-http", mode="native") as root, reader:
            lazyfsd = Lazyfsd(lazyfs.store)
            process = lazyfsd.process
            busy = reader(root, {name: image.files[name] for name in names[callers:]})
            command = [sys.executable, "-m", "tests.killed_callers", str(root), str(callers // 2)]
            both = [subprocess.Popen([*command, f"{seed}-{len(half)}", *half]) for half in halves]
            for each in both:
                assert each.wait(PATIENCE_S) == 0
            busy.check()
            reader(root, image.files).check()
            assert lazyfsd.process == process
            # A request that vanishes at the worst moment begins the loop anew; that is to be rare, and never a loop of its own.
            assert lazyfsd.log().count("restarting the loop") < callers // 10
            assert "fuse_reply" not in lazyfsd.log()


def test_what_is_here_needs_no_daemon(lazyfs: Lazyfs, small: SmallImage, reader: Readers, tmp_path: Path) -> None:
    """Without a daemon, metadata and what is here are served in every mount; who misses waits, and is answered by the next one."""
    here = {name: data for name, data in small.files.items() if name.startswith("etc/")}
    missing = small_file(7), large_file(2)
    known = {name: data for name, data in here.items() if name not in missing}
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as first:
        for name in known:
            assert (first / name).read_bytes() == small.files[name]
        upper = tmp_path / "upper"
        with lazyfs.mounted(small.converted, "--background", "off", "--rw", upper, mode="native") as second, reader:
            lazyfsd = Lazyfsd(lazyfs.store)
            for folder in ("objects", "arrived"):
                # It came along with its neighbours.
                (lazyfs.store / folder / object_name(small.files[missing[0]])).unlink(missing_ok=True)
            with lazyfsd.away():
                for root in (first, second):
                    reader(root, known).check()
                    run("find", root, "-ls", timeout=PATIENCE_S)
                    run("du", "-s", root, timeout=PATIENCE_S)
                run("sh", "-c", "echo new > new; chmod 600 new; mv new newer; mkdir -p folder", cwd=second, timeout=PATIENCE_S)
                waiting = [reader(root, {name: small.files[name]}) for root in (first, second) for name in missing]
                for _ in moments():
                    if lazyfsd.waiting() >= len(missing):
                        break
                assert all(each.is_running() for each in waiting)
            for each in waiting:
                each.check()


class Busy:
    """A process in a directory, that reads a file there when it is told to."""

    def __init__(self, directory: Path) -> None:
        script = 'echo; read name; cat "$name"'
        self._process = subprocess.Popen(["sh", "-c", script], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.read(1)

    def read(self, name: str) -> bytes:
        """What it reads. It ends then."""
        return self._process.communicate(name.encode() + b"\n", timeout=PATIENCE_S)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("command", ["status", "mount"])
def test_lost_with_its_keeper(command: str, lazyfs: Lazyfs, small: SmallImage, reader: Readers, tmp_path: Path) -> None:
    """Keeper and daemon killed, the connection is lost: what is here is served still; the next lazyfsd makes the mounts anew."""
    upper = [tmp_path / f"upper-{number}" for number in range(2)]
    options = [(), (), ("--rw", upper[0]), ("--rw", upper[1]), ()]
    with ExitStack() as stack:
        roots = [
            stack.enter_context(lazyfs.mounted(small.converted, "--background", "off", *more, mode="native")) for more in options
        ]
        still, held, written, held_and_written, gone = roots
        stack.enter_context(reader)
        for root in (still, written):
            assert (root / "first").read_bytes() == small.files["first"]
        (written / "new").write_bytes(b"new")
        users = [stack.enter_context(Busy(root)) for root in (held, held_and_written)]
        lazyfsd = Lazyfsd(lazyfs.store)
        lazyfsd.lose()
        run("umount", gone)
        reader(still, {"first": small.files["first"]}).check()
        assert reader(still, {small_file(3): small.files[small_file(3)]}).report().away
        if command == "status":
            assert lazyfs.json("status", still)["mode"] == "native"
        else:
            roots.append(stack.enter_context(lazyfs.mounted(small.converted, "--background", "off", mode="native")))
        for _ in moments():
            are_anew = lazyfsd.log().count("remounted ") >= 3
            status = {Path(each["directory"]): each for each in lazyfsd.status()}
            if are_anew and "until it is mounted again" in status[held_and_written]["trouble"]:
                break
        assert set(status) == set(roots) - {gone}
        assert "until it is mounted again" in status[held_and_written]["trouble"]
        assert not any(status[root]["trouble"] for root in (still, held, written)), status
        for root in (still, held, written):
            reader(root, small.files).check()
        assert (written / "new").read_bytes() == b"new"
        # Whoever was in a mount that was made anew is in the old one still: it has what is here by now.
        for user in users:
            assert user.read("first") == small.files["first"]
    assert remains(lazyfs.store) == []


def test_a_start_needs_no_registry(lazyfs: Lazyfs, small: SmallImage, reader: Readers) -> None:
    """A daemon that is begun anew knows its images from the store; who waits for the registry since then is answered by it."""
    with LyingRegistry(small.layout) as registry:
        options = ("--background", "off", "--plain-http")
        with lazyfs.mounted(f"{registry.image}:v1", *options, mode="native") as root, reader:
            reader(root, {"first": small.files["first"]}).check()
            registry.lie = silent
            lazyfsd = Lazyfsd(lazyfs.store)
            waiting = [reader(root, {name: small.files[name]}) for name in (small_file(9), large_file(3))]
            assert any(lazyfsd.waiting() for _ in moments())
            lazyfsd.kill()
            asked = len(registry.server.requests)
            reader(root, {"first": small.files["first"]}).check()
            for _ in moments():
                if (status := lazyfsd.status(root)[0])["missing_bytes"]:
                    break
            assert status["missing_bytes"] and not status["trouble"]
            assert all("manifests" not in request.target for request in registry.server.requests[asked:])
            registry.recover()
            for each in waiting:
                each.check()
            reader(root, small.files).check()


def test_a_detached_mount_outlives_a_kill(lazyfs: Lazyfs, small: SmallImage) -> None:
    """Taken out of the tree, and then its daemon is killed: its last user still misses files, and after him nothing is left."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root, Busy(root) as user:
        lazyfs.run("umount", "--lazy", root, "--store", lazyfs.store)
        lazyfsd = Lazyfsd(lazyfs.store)
        lazyfsd.kill()
        assert user.read(small_file(5)) == small.files[small_file(5)]
        assert len(lazyfsd.status()) == 1
    assert remains(lazyfs.store) == []


def test_a_connection_that_is_aborted(lazyfs: Lazyfs, small: SmallImage, reader: Readers) -> None:
    """Somebody ends the gate's connection by force: it and the mounts are made anew, and files come."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root, reader:
        lazyfsd = Lazyfsd(lazyfs.store)
        reader(root, {"first": small.files["first"]}).check()
        lazyfsd.abort()
        name = small_file(11)
        for _ in moments():
            if reader(root, {name: small.files[name]}).report().right:
                break
        reader(root, small.files).check()
    assert remains(lazyfs.store) == []
