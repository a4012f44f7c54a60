"""The memory of a mount's process: torch's image, 30,000 files, of which a gigabyte is read while the pull finishes.

Building torch takes minutes and 15 GB of disk: measured only when asked for by name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figure import Bar, Baseline, Figure
from bench.place import Place
from bench.processes import resident

IMAGE = "torch"
AMOUNT = 1_000_000_000
FEW_ROUNDS = 3
_STEP = 1 << 20


def measure(place: Place) -> list[Figure]:
    """The highest peak of all that, and what reading adds once the pull has finished."""
    image = place.lazy(IMAGE)
    mounted, finished, again, peaks = list[float](), list[float](), list[float](), list[float]()
    for number in range(FEW_ROUNDS):
        place.say(f"memory: round {number + 1} of {FEW_ROUNDS}")
        place.clear_store()
        with place.lazyfs.mounted(image) as root:
            pid = place.lazyfs.json("status", root)["pid"]
            mounted.append(resident(pid) / 1e6)
            files = list(_files(root))
            _read(files)
            while not place.lazyfs.json("status", root)["complete"]:
                time.sleep(1)
            finished.append(resident(pid) / 1e6)
            _read(files)
            _read(files)
            again.append(resident(pid) / 1e6)
            peaks.append(resident(pid, "VmHWM") / 1e6)
    name, before = f"{IMAGE}, {len(files)} files", Baseline("before", tuple(finished))
    return [
        Figure(f"{name}, mounted", "MB", tuple(mounted)),
        # A median would hide what the bar is about.
        Figure(f"{name}, 1 GB read, pull finished, highest peak", "MB", (max(peaks),), Bar("<=", 200)),
        Figure(f"{name}, read twice more", "MB", tuple(again), Bar("<=", 1.05, "ratio"), before),
    ]


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _read(files: list[Path]) -> None:
    """Whole files up to the amount; the kernel forgets them at once, so that the mount's process is asked again."""
    left = AMOUNT
    for path in files:
        with path.open("rb", buffering=0) as file:
            while data := file.read(_STEP):
                left -= len(data)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if left <= 0:
            return
