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
KILLS = 10
"""To each image: by then it is here, and the next one is cold."""
PATIENCE_S = 120.0


class Readers:
    """Processes that read a mount side by side."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.reader"]
        pipe = subprocess.PIPE
        self._processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) for _ in range(READERS)]

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait(PATIENCE_S)
            process.stdout.close()

    def read(self, root: Path, image: SmallImage, after: int = -1, kill: int = 0, delay: float = 0.0) -> list[Report]:
        """Have all of them read all of `image`; `delay` seconds after the dot number `after`, process `kill` is killed."""
        truth = image.layout.with_name("truth")
        if not truth.exists():
            truth.write_bytes(pickle.dumps(image.files))
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            asked = {"root": str(root), "truth": str(truth), "seed": [after, number]}
            process.stdin.write(json.dumps(asked).encode() + b"\n")
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
                data = os.read(stream.fileno(), 1 << 16)
                assert data, "a reader has ended"
                *lines, said[stream] = (said[stream] + data).split(b"\n")
                dots += lines.count(b".")
                reports += [Report(**json.loads(line)) for line in lines if line != b"."]
        return reports


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    """Four processes."""
    readers = Readers()
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


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_moments(
    kills: int, lazyfs: Lazyfs, readers: Readers, chance: random.Random, session_folder: Path, tmp_path: Path
) -> None:
    """Whatever was under way when its process was killed, what is read, then and later, is right; nothing is left behind."""
    root = tmp_path / "root"
    root.mkdir()
    images = [build(session_folder / f"kill-{kills}-{number}", 1000, number) for number in range(-(-kills // KILLS))]
    interrupted = 0
    for number in range(kills):
        image = images[number // KILLS]
        # Towards the end of each image the background comes in; before, it would have all at once.
        background = "on" if number % KILLS > 0.8 * KILLS else "off"
        mounted = lazyfs.json(
            "mount", image.converted, root, "--store", lazyfs.store, "--mode", "portable", "--background", background
        )
        with ExitStack() as stack:
            stack.callback(unmount, root)
            after = chance.randrange(2 * READERS * len(image.files) // KILLS)
            reports = readers.read(root, image, after, mounted["pid"], chance.random() * 0.005)
        assert [report.wrong for report in reports] == [[]] * READERS
        interrupted += any(report.away for report in reports)
    assert interrupted > kills // 2
    stored = Stored(lazyfs, images, readers)
    assert stored.read()["damaged"] == 0
    check_every_damage(stored, chance, turns=3 if kills > KILLS else 1)


class Stored:
    """Images in a store."""

    def __init__(self, lazyfs: Lazyfs, images: list[SmallImage], readers: Readers) -> None:
        self.images = images
        self.folder = lazyfs.store
        self._lazyfs = lazyfs
        self._readers = readers

    def read(self, *, may_leave_partial: bool = False) -> dict[str, int]:
        """Read everything of all images, each in a new mount: it is right, and nothing is left behind. What their mounts counted."""
        counts = {"damaged": 0, "chunks": 0}
        for image in self.images:
            with self._lazyfs.mounted(image.converted, "--background", "off") as root:
                assert all_right(self._readers.read(root, image))
                status = self._lazyfs.json("status", root)
                counts = {name: count + status[name] for name, count in counts.items()}
            assert may_leave_partial or not os.listdir(self.folder / "partial")
            assert not os.listdir(self.folder / "tmp")
        return counts

    def check(self) -> None:
        """Have everything looked at; what is damaged is dropped."""
        self._lazyfs.run("store", "check", "--store", self.folder, code=None)

    def files(self, name: str) -> list[Path]:
        """The files that are not empty in a folder of the store."""
        return sorted(path for path in (self.folder / name).iterdir() if path.stat().st_size)


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


def check_every_damage(stored: Stored, chance: random.Random, turns: int) -> None:
    """Each stored file is cut short, zeroed, or has one bit flipped: reads are right, and what was damaged comes again, counted.

    In three turns each file is damaged in each way.
    """
    kinds = ["cut", "zero", "flip"]
    for turn in range(turns):
        objects, documents = stored.files("objects"), stored.files("documents")
        assert len(objects) > 1000 * len(stored.images)
        for number, path in enumerate([*objects, *documents]):
            damage(path, kinds[(number + turn) % 3], chance)
        counts = stored.read()
        # Manifests are asked for by their tags, and so are not read from the store.
        documents_read = len(documents) - len(stored.images)
        assert counts["damaged"] >= len(objects) + documents_read
        assert counts["chunks"] == counts["damaged"] - documents_read
        for number, path in enumerate([*stored.files("documents"), *stored.files("notes")]):
            damage(path, kinds[(number + turn) % 3], chance)
        # Without its note a TOC is not read either: it is fetched and replaced. What is left is each image's config.
        assert stored.read() == {"damaged": len(stored.images), "chunks": 0}
    for how in kinds:
        damage(stored.folder / "index.sqlite", how, chance)
        # Where the damage is met in the middle of a file, the rows of its first chunks are lost as well, and what the
        # kernel has cached of them is not asked for again: the next mount completes the file.
        stored.read(may_leave_partial=True)
        stored.check()  # there are pages that reads do not meet each time
        stored.read()
    assert stored.read() == {"damaged": 0, "chunks": 0}
