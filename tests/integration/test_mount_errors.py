"""Trouble under a mount: EIO for the file concerned, one log line with the cause, and nothing of it once the cause is gone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.mount.logs import log_file
from tests.commands import Lazyfs, run
from tests.docker_registry import Registry
from tests.lying_registry import Lie, LyingRegistry
from tests.small_image import LARGE, SMALL, SmallImage, large_file, listed, small_file
from tests.unit.registry.scripted import Reply, Request, reply

pytestmark = pytest.mark.fuse


def read(path: Path) -> bytes | int:
    """A file's bytes, or the errno of the failure. Past the page cache, so that the kernel asks once for each piece."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with open(descriptor, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        return error.errno or 0


def log_lines(lazyfs: Lazyfs, directory: Path) -> list[str]:
    """What the mount at `directory` has complained about."""
    path = log_file(lazyfs.store, directory)
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if " INFO " not in line]


def walk_metadata(directory: Path) -> int:
    """Ask for all metadata of a tree; how many paths it has."""
    count = 0
    for folder, directories, files in os.walk(directory):
        os.statvfs(folder)
        for path in [os.path.join(folder, name) for name in (*directories, *files)]:
            count += 1
            os.lstat(path)
            for key in os.listxattr(path, follow_symlinks=False):
                os.getxattr(path, key, follow_symlinks=False)
            if os.path.islink(path):
                os.readlink(path)
    return count


def test_registry_away_and_back(lazyfs: Lazyfs, registry: Registry, small: SmallImage) -> None:
    """Files that are here go on, all others are EIO, and come when the registry is back; the log tells why, once for each."""
    image = registry.push(small.converted, "small:v1")
    with lazyfs.mounted(image, "--background", "off") as root:
        assert read(root / "first") == small.files["first"]
        registry.stop()
        missing = [large_file(0), large_file(1), large_file(2)]
        with ThreadPoolExecutor() as readers:
            assert list(readers.map(read, [root / name for name in missing])) == [errno.EIO] * 3
        assert read(root / "first") == small.files["first"]
        assert walk_metadata(root) > LARGE + SMALL
        lines = log_lines(lazyfs, root)
        assert len(lines) == 3
        for name in missing:
            assert sum(f"cannot read '{name}': " in line and registry.address in line for line in lines) == 1
        assert lazyfs.json("status", root)["errors"] == {"Unreachable": 3}
        registry.start()
        assert not small.wrong_files(root)
        assert len(log_lines(lazyfs, root)) == 3


def test_metadata_never_asks_the_network(lazyfs: Lazyfs, small: SmallImage) -> None:
    """A walk through everything but the bytes of files sends no request; nor does it need anybody to be there."""
    with LyingRegistry(small.layout) as registry:
        with lazyfs.mounted(registry.image + ":v1", "--background", "off") as root:
            asked = len(registry.server.requests)
            assert walk_metadata(root) > LARGE + SMALL
            assert len(registry.server.requests) == asked
    with lazyfs.mounted(f"{registry.image}@{small.digest}", "--background", "off") as root:
        assert walk_metadata(root) > LARGE + SMALL
        assert (root / "bin/symlink").readlink() == Path("tool")
        assert not log_lines(lazyfs, root)


@pytest.fixture
def layout(small: SmallImage, tmp_path: Path) -> Path:
    """The converted image in a layout of the test's own."""
    return Path(shutil.copytree(small.layout, tmp_path / "layout"))


def place_of(layout: Path, name: str) -> tuple[Path, int]:
    """The blob in which a file's first chunk lies, and where."""
    return next((path, entry.chunks[0].member) for path, entry in listed(layout) if entry.name == name.encode())


def test_blob_changed_under_way(lazyfs: Lazyfs, layout: Path, small: SmallImage) -> None:
    """A byte that is wrong at the source never gets through: the file with it is EIO, its neighbours are right."""
    name = small_file(100)
    path, offset = place_of(layout, name)
    good = path.read_bytes()
    with lazyfs.mounted(f"oci:{layout}:v1", "--background", "off") as root:
        with path.open("r+b") as blob:
            blob.seek(offset + 20)
            blob.write(bytes([good[offset + 20] ^ 1]))
        neighbours = small._replace(files={key: data for key, data in small.files.items() if key != name})
        assert not neighbours.wrong_files(root)
        assert read(root / name) == errno.EIO
        (line,) = log_lines(lazyfs, root)
        assert f"cannot read '{name}'" in line and f"layer sha256:{path.name}" in line
        assert lazyfs.json("status", root)["missing_chunks"] == 2  # that one, and the landmark, which nobody reads
        path.write_bytes(good)
        assert read(root / name) == small.files[name]
        assert lazyfs.json("status", root)["missing_chunks"] == 1


def test_blob_cut_short_under_way(lazyfs: Lazyfs, layout: Path, small: SmallImage) -> None:
    """A blob of another size is not read from at all."""
    path, _ = place_of(layout, large_file(3))
    good = path.read_bytes()
    with lazyfs.mounted(f"oci:{layout}:v1", "--background", "off") as root:
        path.write_bytes(good[:-1])
        assert read(root / large_file(3)) == errno.EIO
        assert read(root / "first") == small.files["first"]
        (line,) = log_lines(lazyfs, root)
        assert f"cannot read '{large_file(3)}'" in line and f"instead of {len(good)}" in line
        path.write_bytes(good)
        assert not small.wrong_files(root)


def other_range(request: Request, right: bytes) -> bytes:
    return right.replace(b"content-range: bytes ", b"content-range: bytes 1")


def other_bytes(request: Request, right: bytes) -> bytes:
    head, end, body = right.partition(b"\r\n\r\n")
    return head + end + bytes(len(body))


LIES: dict[str, tuple[Lie, str]] = {
    "another range": (other_range, "answers a request for bytes"),
    "other bytes": (other_bytes, "gzip member is broken"),
    "too little": (lambda request, right: Reply(right[:-1000], "close"), "the sender broke off"),
    "gone": (lambda request, right: reply(404), "404"),
    "a circle": (lambda request, right: reply(307, location=request.target), "redirects in a circle"),
}


@pytest.mark.parametrize("case", LIES)
def test_registry_that_begins_to_lie(case: str, lazyfs: Lazyfs, small: SmallImage) -> None:
    """What a registry sends instead of a chunk is EIO while it does so, and forgotten when it does not."""
    lie, words = LIES[case]
    with LyingRegistry(small.layout) as registry, lazyfs.mounted(registry.image + ":v1", "--background", "off") as root:
        registry.lie = lie
        assert read(root / large_file(0)) == errno.EIO
        (line,) = log_lines(lazyfs, root)
        assert f"cannot read '{large_file(0)}'" in line and words in line
        registry.lie = None
        assert not small.wrong_files(root)
        assert len(log_lines(lazyfs, root)) == 1


@pytest.fixture
def tiny_disk(lazyfs: Lazyfs) -> Iterator[Callable[[int], None]]:
    """`tiny_disk(kib)` puts the store on a disk of that size."""

    def mount(kib: int) -> None:
        lazyfs.store.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", lazyfs.store)

    yield mount
    run("umount", "--lazy", lazyfs.store)


@pytest.mark.root
def test_disk_full(lazyfs: Lazyfs, small: SmallImage, tiny_disk: Callable[[int], None]) -> None:
    """What the store has no room for is served all the same, every time; one warning says so."""
    tiny_disk(1500)
    with lazyfs.mounted(small.converted, "--background", "off") as root:
        for _ in range(2):
            assert not small.wrong_files(root)
            Path("/proc/sys/vm/drop_caches").write_text("1")
        status = lazyfs.json("status", root)
        assert status["unkept"] and not status["complete"]
        # Others may follow: that what has arrived would not survive a power cut.
        (line,) = (line for line in log_lines(lazyfs, root) if "from memory without storing it" in line)
        assert "Free space" in line


@pytest.mark.root
def test_store_without_room_to_open(lazyfs: Lazyfs, small: SmallImage, tiny_disk: Callable[[int], None], tmp_path: Path) -> None:
    """A disk that is full to the last byte is named, and what to do about it."""
    tiny_disk(1500)
    lazyfs.run("store", "info", "--store", lazyfs.store)
    with (lazyfs.store / "logs" / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(4096))
    directory = tmp_path / "directory"
    directory.mkdir()
    output = lazyfs.run(
        "mount", small.converted, directory, "--store", lazyfs.store, "--mode", "portable", "--mode", "portable", code=5
    ).stderr.decode()
    assert f"the store {lazyfs.store} cannot be opened" in output and "Free space" in output
