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
_STEP = 1 << 20


def measure(place: Place) -> list[Figure]:
    """The peak of all that, and what reading adds once the pull has finished."""
    image = place.lazy(IMAGE)
    place.clear_store()
    with place.lazyfs.mounted(image) as root:
        pid = place.lazyfs.json("status", root)["pid"]
        mounted = resident(pid)
        files = list(_files(root))
        place.say(f"memory: reading {AMOUNT / 1e9:g} GB of {len(files)} files")
        _read(files)
        place.say("memory: waiting until the pull has finished")
        while not place.lazyfs.json("status", root)["complete"]:
            time.sleep(1)
        finished = resident(pid)
        place.say("memory: reading again, twice")
        _read(files)
        _read(files)
        again, most = resident(pid), resident(pid, "VmHWM")
    name = f"{IMAGE}, {len(files)} files"
    return [
        Figure(f"{name}, mounted", "MB", (mounted / 1e6,)),
        Figure(f"{name}, 1 GB read, pull finished, peak", "MB", (most / 1e6,), Bar("<=", 200)),
        Figure(f"{name}, read twice more", "MB", (again / 1e6,), Bar("<=", 1.05, "ratio"), Baseline("before", (finished / 1e6,))),
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
