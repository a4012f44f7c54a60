"""Reading through a mount: one large file from the registry, from the page cache and from the store; a crowd; small files."""

from __future__ import annotations

import os
import random
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from bench.figure import Bar, Baseline, Figure
from bench.libraries import libraries, make_image, write_file
from bench.place import ROUNDS, Place

SIZE = 200_000_000
SMALL = 1000
READERS = 64
WARM_READS = 3
NEAR = 2 << 20
"""Readers of one chunk of 4 MiB stay in its first half, so that the kernel's read-ahead does not ask for the next one too."""


def measure(place: Place) -> list[Figure]:
    """Throughput beside tmpfs, and requests as the registry counts them."""
    large = write_file(place.folder / "libraries", libraries(place, "scipy"), SIZE)
    image = f"docker://{place.registry.address}/lazy/read:v1"
    place.convert(make_image(place.folder, "read", lambda tar: _fill(tar, large)), image)
    cold, cached, stored, tmpfs = list[float](), list[float](), list[float](), list[float]()
    requests, crowd, small = list[float](), list[float](), list[float]()
    for number in range(ROUNDS):
        place.say(f"read: round {number + 1} of {ROUNDS}")
        place.clear_store()
        with place.lazyfs.mounted(image, "--background", "off") as root, _counted(place, requests):
            cold.append(_throughput(place, root / "large"))
            for _ in range(WARM_READS):  # each is over in 50 ms, and another process is soon in its way
                cached.append(_throughput(place, root / "large"))
                tmpfs.append(_throughput(place, large))
        with place.lazyfs.mounted(image, "--background", "off") as root:
            stored.append(_throughput(place, root / "large"))
        place.clear_store()
        with place.lazyfs.mounted(image, "--background", "off") as root:
            with _counted(place, crowd):
                _read_at_once(root / "large")
            with _counted(place, small):
                place.seconds("tar", "cf", place.folder / "small.tar", "-C", root, "small")
    plain = Baseline("tmpfs", tuple(tmpfs))
    return [
        Figure("200 MB, cold", "MB/s", tuple(cold), Bar(">=", 100), plain),
        Figure("200 MB, cold", "requests", tuple(requests), Bar("<=", 20)),
        Figure("200 MB, same mount again", "MB/s", tuple(cached), Bar(">=", 0.8, "ratio"), plain),
        Figure("200 MB, new mount, store full", "MB/s", tuple(stored), Bar(">=", 700), plain),
        Figure(f"{READERS} readers of one cold chunk", "requests", tuple(crowd), Bar("==", 1)),
        Figure(f"tar c of {SMALL} small files", "requests", tuple(small), Bar("<=", 60)),
    ]


def _fill(tar: tarfile.TarFile, large: Path) -> None:
    """The large file, and small ones as a package's sources are: 100 B to 16 kB, all different."""
    tar.add(large, "large")
    sizes = random.Random(1)
    with large.open("rb") as source:
        for number in range(SMALL):
            member = tarfile.TarInfo(f"small/{number:04}")
            member.size = int(100 * 160 ** sizes.random())
            tar.addfile(member, BytesIO(os.pread(source.fileno(), member.size, number * 100_000)))


def _throughput(place: Place, file: Path) -> float:
    return file.stat().st_size / 1e6 / place.seconds("dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none")


@contextmanager
def _counted(place: Place, counts: list[float]) -> Iterator[None]:
    """Append how many requests for bytes of blobs the block made."""
    before = len(place.registry.requests())
    yield
    counts.append(len(place.registry.blob_requests(before)))


def _read_at_once(file: Path) -> None:
    start = threading.Barrier(READERS)

    def read(number: int) -> None:
        with file.open("rb") as opened:
            start.wait()
            os.pread(opened.fileno(), 4096, number * (NEAR // READERS))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
