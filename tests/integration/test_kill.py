"""kill -9, again and again, while an image is read cold; then damage to every file of the store: no read is ever wrong.

Every moment of a kill is drawn from a seed that a failure prints; LAZYFS_SEED repeats it.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lazyfs.mount.unmount import unmount
from tests.commands import Lazyfs
from tests.reader import Report
from tests.small_image import SmallImage, build

pytestmark = pytest.mark.fuse

READERS = 4
PATIENCE_S = 120.0


class Readers:
    """Processes that read a mount side by side."""

    def __init__(self, truth: Path) -> None:
        command = [sys.executable, "-m", "tests.reader", str(truth)]
        pipe = subprocess.PIPE
        self._processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) for _ in range(READERS)]

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait(PATIENCE_S)
            process.stdout.close()

    def read(self, root: Path, seed: int, after: int = -1, kill: int = 0, delay: float = 0.0) -> list[Report]:
        """Have all of them read everything; `delay` seconds after the dot number `after`, process `kill` is killed."""
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"root": str(root), "seed": [seed, number]}).encode() + b"\n")
        said = {process.stdout: b"" for process in self._processes if process.stdout is not None}
        reports: list[Report] = []
        dots = 0
        while len(reports) < READERS:
            if kill and dots >= after:
                time.sleep(delay)
                os.kill(kill, signal.SIGKILL)
                kill = 0
            ready, _, _ = select.select(said, [], [], PATIENCE_S)
            assert ready, "the readers say nothing more"
            for stream in ready:
                *lines, said[stream] = (said[stream] + os.read(stream.fileno(), 1 << 16)).split(b"\n")
                dots += lines.count(b".")
                reports += [Report(**json.loads(line)) for line in lines if line != b"."]
        return reports


@pytest.fixture(scope="module")
def image(session_folder: Path) -> SmallImage:
    """An image of a thousand files."""
    return build(session_folder / "thousand", small_files=1000)


@pytest.fixture(scope="module")
def readers(image: SmallImage, session_folder: Path) -> Iterator[Readers]:
    """Four processes that know what the image holds."""
    truth = session_folder / "truth"
    truth.write_bytes(pickle.dumps(image.files))
    readers = Readers(truth)
    yield readers
    readers.close()


@pytest.fixture
def chance() -> random.Random:
    """Chance, from a seed that is printed."""
    seed = os.environ.get("LAZYFS_SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"LAZYFS_SEED={seed}")
    return random.Random(seed)


def all_right(reports: list[Report]) -> bool:
    """Whether every file was read to its end by everybody, and was right."""
    return not any(report.wrong or report.away for report in reports)


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_moments(
    kills: int, lazyfs: Lazyfs, image: SmallImage, readers: Readers, chance: random.Random, tmp_path: Path
) -> None:
    """Whatever was under way when its process was killed, what is read, then and later, is right; nothing is left behind."""
    root = tmp_path / "root"
    root.mkdir()
    interrupted = 0
    for number in range(kills):
        # Towards the end the background comes in; before, it would have all at once.
        background = "on" if number > 0.8 * kills and chance.random() < 0.5 else "off"
        mounted = lazyfs.json("mount", image.converted, root, "--store", lazyfs.store, "--background", background)
        with ExitStack() as stack:
            stack.callback(unmount, root)
            after = chance.randrange(2 * READERS * len(image.files) // kills)
            reports = readers.read(root, number, after, mounted["pid"], chance.random() * 0.005)
        assert [report.wrong for report in reports] == [[]] * READERS
        interrupted += any(report.away for report in reports)
    assert interrupted > kills // 2
    with lazyfs.mounted(image.converted, "--background", "off"):
        pass
    check_every_damage(lazyfs, image, readers, chance)


def damage(path: Path, how: str, chance: random.Random) -> None:
    """Cut a file short, zero it, or flip one bit, in place: as a disk would, not as a program that makes a new file."""
    size = path.stat().st_size
    path.chmod(0o600)
    with path.open("r+b", buffering=0) as file:
        if how == "cut":
            file.truncate(chance.randrange(size))
        elif how == "zero":
            file.write(bytes(size))
        else:
            offset = chance.randrange(size)
            byte = os.pread(file.fileno(), 1, offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << chance.randrange(8)]), offset)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.stat().st_size)


def check_every_damage(lazyfs: Lazyfs, image: SmallImage, readers: Readers, chance: random.Random) -> None:
    """Each stored file in turn cut short, zeroed, one bit flipped: reads are right, and what was damaged comes again, counted."""
    store = lazyfs.store
    with lazyfs.mounted(image.converted, "--background", "off") as root:
        assert all_right(readers.read(root, -1))
        assert lazyfs.json("status", root)["damaged"] == 0
    assert not list((store / "partial").iterdir()) and not list((store / "tmp").iterdir())
    kinds = ["cut", "zero", "flip"]
    for turn in range(3):
        objects, documents = files_in(store / "objects"), files_in(store / "documents")
        assert len(objects) >= len(set(image.files.values())) - 1 and len(documents) == 4
        for number, path in enumerate([*objects, *documents, *files_in(store / "notes")]):
            damage(path, kinds[(number + turn) % 3], chance)
        with lazyfs.mounted(image.converted, "--background", "off") as root:
            assert all_right(readers.read(root, turn))
            status = lazyfs.json("status", root)
            # The manifest is asked for by its tag, and so is not read from the store.
            assert status["damaged"] >= len(objects) + len(documents) - 1
            assert status["chunks"] == status["damaged"] - (len(documents) - 1)
        assert not list((store / "partial").iterdir()) and not list((store / "tmp").iterdir())
    for how in kinds:
        damage(store / "index.sqlite", how, chance)
        with lazyfs.mounted(image.converted, "--background", "off") as root:
            assert all_right(readers.read(root, 0))
        assert not list((store / "partial").iterdir()) and not list((store / "tmp").iterdir())
    with lazyfs.mounted(image.converted, "--background", "off") as root:
        assert all_right(readers.read(root, 0))
        status = lazyfs.json("status", root)
        assert not status["damaged"] and not status["chunks"]
