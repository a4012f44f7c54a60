"""The power fails in the middle of pulls, starts and removals: with what is on the disk then, containers start, and every byte is right.

Everything that outlives a boot lies on two disks that are cut at one moment: the state of lazyfsd, and that of containerd. containerd
itself does not survive the loss of what it has not synced (blobs that its database names, a file that its `version` needs): all that it
had written is on its disk. Every moment is drawn from a seed that a failure prints; LAZYFS_SEED repeats it.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.commands import run
from tests.containerd import Containerd
from tests.disk import commit_names, cut, make_disk, mounted
from tests.lazyfsd import moments
from tests.lying_registry import LyingRegistry
from tests.plugin import NAME, Plugin, plugin_folder
from tests.processes import stopped, tree
from tests.tool_image import TOOL, ToolImage, build_tool

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer]

DISKS = OURS, CONTAINERDS = "ours", "containerds"
SERIES = [("lol", 3), *(pytest.param(which, 40, marks=pytest.mark.slow) for which in ("lll", "lol", "ooo"))]
"""Which layers are lazy, and how often the power fails."""
SIZE = 256 << 20
PATIENCE_S = 60
ROUND_S = 2.0
"""About as long as a pull, a start and a removal take."""
LAYERS = [
    {f"files/{number}": bytes([number]) * (33_000 + number) for number in range(1, 40)},
    {"top/1": b"of the uppermost layer\n" * 5000},
]
READ = ("etc/hello", "files/1", "files/20", "files/39", "top/1")
TRUTH = b"".join(({"etc/hello": b"hello\n"} | LAYERS[0] | LAYERS[1])[name] for name in READ)
COMMAND = (TOOL, *(f"/{name}" for name in READ))


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> ToolImage:
    return build_tool(tmp_path_factory.mktemp("tool"), *LAYERS)


class Machine:
    """What runs between two cuts: lazyfsd and a containerd, with all that they keep on the file system at `folder`."""

    def __init__(self, folder: Path, registry: LyingRegistry) -> None:
        self._reference = f"{registry.image}:v1"
        self.used = 0
        """How often all of that went well."""
        self.plugin = Plugin(folder / OURS / "p")
        home = folder / CONTAINERDS / "c"
        # What lies under /run, no boot finds.
        shutil.rmtree(home / "state", ignore_errors=True)
        self.plugin.socket.unlink(missing_ok=True)
        self.plugin.start()
        self.plugin.wait_until_ready()
        self.containerd = Containerd(home, {NAME: self.plugin.socket})

    def check(self) -> None:
        """A pull and a run work, what they leave goes with the image, and so does what was there."""
        for container in self.containerd.containers():
            if not self._is_half_removed(container):
                assert self._start_again(container) == TRUTH
        self._use()
        assert self.plugin.status()["containerds"][0]["name"]
        self.plugin.await_empty()

    def use_until(self, enough: threading.Event) -> None:
        """Pulls, starts and removals, one after the other."""
        while not enough.is_set():
            with suppress(AssertionError):  # containerd gives up a shim that was stopped while it started
                self._use()
                self.used += 1

    def _use(self) -> None:
        name = self.containerd.pull_lazily(self._reference, NAME)
        assert self.containerd.output(name, *COMMAND, snapshotter=NAME).encode() == TRUTH
        self.containerd.prune()

    def _is_half_removed(self, container: str) -> bool:
        """Whether the power failed while `ctr run --rm` removed it: the snapshot goes first, and the container after it.

        The words are containerd's own, about its own database. Of a snapshot that only lazyfsd has lost, lazyfsd speaks, in others.
        """
        asked = self.containerd.ctr("snapshots", "--snapshotter", NAME, "info", container, code=None)
        return asked.stderr.decode() == f"ctr: snapshot {container} does not exist: not found\n"

    def _start_again(self, container: str) -> bytes:
        """A container that ran when the power failed."""
        with self.containerd.start("tasks", "start", container) as start:
            said, complaint = start.communicate(timeout=PATIENCE_S)
        assert not start.returncode, complaint
        return said

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nobody writes anything inside the block."""
        with stopped([*tree(self.plugin.process), *tree(self.containerd.process)]):
            yield


@contextmanager
def running(folder: Path, registry: LyingRegistry) -> Iterator[Machine]:
    machine = Machine(folder, registry)
    try:
        with machine.containerd:
            yield machine
    finally:
        machine.plugin.tidy_up()


@contextmanager
def disks(folder: Path, at: Path) -> Iterator[None]:
    """Those of a machine, as files in `folder`, mounted below `at`."""
    with ExitStack() as stack:
        for name in DISKS:
            stack.enter_context(mounted(folder / name, at / name))
        yield


@pytest.mark.parametrize(("which", "cuts"), SERIES)
def test_power_cuts(which: str, cuts: int, tool: ToolImage, seed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever layers are lazy: nothing is wrong afterwards, nothing is left over, and no container has lost its image."""
    chance = random.Random(seed)
    live, *copies = [tmp_path / name for name in ("live", *map(str, range(cuts)))]
    for folder in (live, *copies):
        folder.mkdir()
    for name in DISKS:
        make_disk(live / name, SIZE)
    with plugin_folder() as at, LyingRegistry.serving(tool.mixed(which)) as registry:
        with disks(live, at), running(at, registry) as machine:
            enough = threading.Event()
            user = threading.Thread(target=machine.use_until, args=(enough,))
            user.start()
            try:
                for copy in copies:
                    time.sleep(chance.uniform(0, ROUND_S))
                    with machine.at_rest():
                        for name in DISKS:
                            if name == CONTAINERDS:
                                run("sync", "--file-system", at / name)
                            elif chance.random() < 0.5:
                                commit_names(at / name)
                            cut(at / name, live / name, copy / name)
                for _ in moments():
                    if machine.used:
                        break
            finally:
                enough.set()
                user.join()
            assert machine.used
        for copy in copies:
            monkeypatch.setenv("LAZYFS_BOOT_ID", f"boot {copy.name}")
            with disks(copy, at), running(at, registry) as machine:
                machine.check()
            shutil.rmtree(copy)
