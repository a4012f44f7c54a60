"""lazyfsd killed under containers: those that read, list and start see nothing of it but a pause.

Every moment of a kill is drawn from a seed that a failure prints; LAZYFS_SEED repeats it.
"""

from __future__ import annotations

import json
import pickle
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lazyfs.store.claims import Claims
from tests.containerd import Containerd
from tests.lazyfsd import PATIENCE_S
from tests.lying_registry import LyingRegistry
from tests.mixed_image import join
from tests.plugin import NAME, Plugin
from tests.small_image import SmallImage, build_of
from tests.tool_image import HELLO, build_tool

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer, pytest.mark.images]

READERS = 4
FILES = 120
"""More than are read from one kill to the next, on the whole."""
SPARE = 400
"""What is read besides, where some kills have to wait for a start that is repeated."""
LATE = 0.02
LONGEST_PAUSE_S = 2.0
HANDSHAKE_S = 1.0
"""How long containerd's connection waits for the first word of a server. Source: grpc-go, backoff.DefaultConfig."""
TESTS = Path(__file__).parents[1]


class ContainedReader:
    """A container that reads files of its image and holds them against the truth; tells how long its longest pause was."""

    def __init__(self, containerd: Containerd, image: str, number: int, truth: dict[str, bytes], folder: Path) -> None:
        # runc knows containers by name, whichever containerd they are of.
        self._name, self._containerd = f"{containerd.folder.parent.name}-reader-{number}", containerd
        log = folder / f"told-{number}"
        log.mkdir()
        (log / "truth").write_bytes(pickle.dumps(truth))
        self._count = len(truth)
        mounts = [
            f"type=bind,src={source},dst={target},options=rbind:ro" for source, target in ((TESTS, "/mnt"), (log, "/media"))
        ]
        arguments = [argument for mount in mounts for argument in ("--mount", mount)]
        # ctr does not tell a container that its input has ended, and may lose the output of what ends at once.
        script = "head -n 1 | python3 /mnt/reader.py; code=$?; sleep 0.1; exit $code"
        command = ["run", "--snapshotter", NAME, *arguments, image, self._name, "sh", "-c", script]
        self._process = containerd.start(*command)
        assert self._process.stdin is not None
        asked = {"root": "/", "truth": "/media/truth", "seed": number}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.close()
        self._process.stdin = None
        self.longest = 0.0
        self._said = b""
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), self.end()  # from here on there is no call of containerd's to be cut
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        before = time.monotonic()
        for line in self._process.stdout:
            now = time.monotonic()
            self.longest = max(self.longest, now - before)
            before = now
            self._said = line

    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> tuple[int, bytes]:
        """How it ended, and what it complained of: too early, where everything was here before the last kill."""
        assert self._process.stderr is not None
        code = self._process.wait(PATIENCE_S)
        return code, complaints(self._process.stderr.read())

    def check(self) -> None:
        """Every file was read to its end, and was right."""
        assert self.end() == (0, b"")
        self._thread.join(PATIENCE_S)
        report = json.loads(self._said)
        assert (report["wrong"], report["away"], len(report["right"])) == ([], [], self._count)

    def close(self) -> None:
        if self.is_running():
            self._containerd.ctr("tasks", "kill", "--signal", "KILL", self._name, code=None)
        self._process.kill()
        self._thread.join(PATIENCE_S)
        with self._process:  # closes its pipes
            pass
        self._containerd.ctr("containers", "rm", self._name)
        self._thread.join(PATIENCE_S)


class Starter:
    """Starts containers that list and print, one after the other. A start that fails succeeds when it is repeated once.

    Not at once: where a daemon was killed twice in a row, containerd does not try its socket again for up to 3 s.
    """

    def __init__(self, containerd: Containerd, image: str) -> None:
        self._containerd, self._image = containerd, image
        self.started = 0
        self.repeated = 0
        self.last = ""
        """What the last one said."""
        self.repeating = threading.Lock()
        """Held while one is repeated: nobody is killed then."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._start("first"):
                with self.repeating:
                    self._containerd.await_snapshotter(NAME)
                    self.repeated += 1
                    if not self._start("again"):
                        return
            self.started += 1

    def _start(self, which: str) -> bool:
        name = f"{self._containerd.folder.parent.name}-started-{self.started}-{which}"
        # ctr may lose the output of what ends at once.
        command = ["sh", "-c", "ls -lR /etc /files > /dev/null && echo hello && sleep 0.1"]
        done = self._containerd.ctr("run", "--rm", "--snapshotter", NAME, self._image, name, *command, code=None)
        self.last = (done.stdout + complaints(done.stderr)).decode(errors="replace")
        return done.returncode == 0 and done.stdout == b"hello\n"

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_S)


def complaints(said: bytes) -> bytes:
    """What ctr has to say of a container: containerd 2.4 also says that cgroups of version 1 will not do for ever."""
    return b"".join(line for line in said.splitlines(keepends=True) if b"DEPRECATION" not in line)


def build_many(folder: Path, count: int) -> SmallImage:
    """`count` files of one chunk each, too large for one to bring its neighbour along."""
    chance = random.Random(5)
    return build_of(folder, {f"files/{number % 50}/{number}": chance.randbytes(33_000 + number) for number in range(count)})


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.alone])])
def test_kills_under_containers(
    kills: int, plugin: Plugin, converted_layout: Callable[[str], str], seed: str, tmp_path: Path
) -> None:
    """kill -9 under 4 containers that read what is missing, and others that start and list: no error, every byte right."""
    many = build_many(tmp_path / "many", kills * FILES + SPARE)
    image = join([converted_layout("python"), many.converted], tmp_path / "both")
    chance = random.Random(seed)
    shares = [dict(list(many.files.items())[number::READERS]) for number in range(READERS)]
    with (
        LyingRegistry.serving(image) as registry,
        Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd,
    ):
        registry.server.late = LATE
        name = containerd.pull_lazily(f"{registry.image}:v1", NAME)
        readers = [ContainedReader(containerd, name, number, share, tmp_path) for number, share in enumerate(shares)]
        starter = Starter(containerd, name)
        in_flight = []
        try:
            for number in range(kills):
                # Every third into the middle of the takeover that the last one made necessary.
                if number % 3:
                    plugin.wait_until_ready()
                time.sleep(chance.uniform(0, 0.6))
                assert any(each.is_running() for each in readers), [each.end() for each in readers]
                with starter.repeating:
                    in_flight.append(plugin.kill())
            # The last kill may have closed containerd's connection a moment ago: removing containers is not repeated.
            containerd.await_snapshotter(NAME)
            for each in readers:
                each.check()
        finally:
            starter.stop()
            for each in readers:
                each.close()
        assert starter.last == "hello\n"
        assert starter.started > 1
        assert sum(count > 0 for count in in_flight) >= kills // 2, in_flight
        if kills > 10:  # on a machine that does nothing else
            assert max(each.longest for each in readers) < LONGEST_PAUSE_S, [each.longest for each in readers]
        containerd.ctr("images", "rm", "--sync", name)
        assert containerd.snapshots(NAME) == {}


def test_calls_wait_for_a_start_that_takes_long(plugin: Plugin, tmp_path: Path) -> None:
    """Longer than gRPC waits for the first word of a server: a container's start waits all the same, and succeeds."""
    image = build_tool(tmp_path / "tool", {}, {})
    with (
        LyingRegistry.serving(image.converted) as registry,
        Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd,
        closing(Claims(plugin.store / "claims")) as claims,
    ):
        name = containerd.pull_lazily(f"{registry.image}:v1", NAME)
        with claims.opening():  # no store is opened meanwhile
            plugin.kill()
            command = ("run", "--rm", "--snapshotter", NAME, name, f"{plugin.folder.name}-waits", *HELLO)
            start = containerd.start(*command)
            time.sleep(2.5 * HANDSHAKE_S)
        with start:
            said, complaint = start.communicate(timeout=PATIENCE_S)
        assert (start.returncode, said) == (0, b"hello\n"), complaint
        containerd.ctr("images", "rm", "--sync", name)
