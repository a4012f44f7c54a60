"""Native mounts in bad times: a registry that is away or silent, objects removed by hand, a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.native.stack import reconfigure
from tests.commands import Lazyfs, run
from tests.lazyfsd import Lazyfsd, await_end, moments, object_name, remains
from tests.lying_registry import Lie, LyingRegistry, silent
from tests.readers import Readers
from tests.small_image import LARGE, SmallImage, build, build_of, large_file, small_file
from tests.unit.registry.scripted import reply

pytestmark = [pytest.mark.fuse, pytest.mark.root]

STUCK = 200
READ_CALLS = {"x86_64": "0", "aarch64": "63"}
"""read(2)'s number."""


def gone(_request: object, _right: object) -> bytes:
    """A registry that has lost everything: that is not worth another try."""
    return reply(404)


def troubled(_request: object, _right: object) -> bytes:
    """A registry in trouble: it is asked again, until a deadline."""
    return reply(503)


@contextmanager
def mounted_from(registry: LyingRegistry, lazyfs: Lazyfs) -> Iterator[Path]:
    """The registry's image."""
    with lazyfs.mounted(f"{registry.image}:v1", "--background", "off", "--plain-http", mode="native") as root:
        yield root


@pytest.mark.parametrize("lie", [gone, pytest.param(troubled, marks=pytest.mark.slow)])
def test_a_registry_that_is_away(lie: Lie, lazyfs: Lazyfs, small: SmallImage, reader: Readers) -> None:
    """A miss that cannot be fetched is EIO in the end, and nothing worse; once the registry is back, the same open works."""
    files = {name: small.files[name] for name in (small_file(3), large_file(LARGE - 1))}
    with LyingRegistry(small.layout) as registry, mounted_from(registry, lazyfs) as root, reader:
        registry.lie = lie
        for each in [reader(root, files) for _ in range(3)]:
            assert set(each.report().away) == set(files)
        run("find", root, "-ls")
        registry.recover()
        reader(root, files).check()
        lazyfsd = Lazyfsd(lazyfs.store)
        assert lazyfsd.count(root, "entries") and lazyfsd.status(root)[0]["errors"]


def test_callers_of_a_silent_registry_can_be_killed(lazyfs: Lazyfs, small: SmallImage, reader: Readers) -> None:
    """Who waits for a registry that never answers is soon in a read, where it can be killed; who is not gets what he waits for."""
    with LyingRegistry(small.layout) as registry, mounted_from(registry, lazyfs) as root, reader:
        registry.lie = silent
        names = [small_file(1), small_file(50), small_file(100), small_file(1)]
        callers = [reader(root, {name: small.files[name]}) for name in names]
        for caller, name in zip(callers, names, strict=True):
            assert any(is_reading(caller.process, root / name) for _ in moments()), "it is still in its lookup"
        *victims, last = callers
        for victim in victims:
            os.kill(victim.process, signal.SIGKILL)
            await_end(victim.process)
        registry.recover()
        last.check()
        reader(root, small.files).check()


def is_reading(process: int, path: Path) -> bool:
    """Whether it waits in read(2) of this file."""
    call, _, arguments = Path(f"/proc/{process}/syscall").read_text().partition(" ")
    if call != READ_CALLS[os.uname().machine]:
        return False
    descriptor = int(arguments.split(" ")[0], 16)
    return os.readlink(f"/proc/{process}/fd/{descriptor}") == str(path)


@pytest.mark.slow
def test_a_silent_registry_is_given_up(lazyfs: Lazyfs, small: SmallImage, reader: Readers) -> None:
    """A read that a registry never answers is EIO; the same open works once it answers. The kernel asks twice, first ahead of the
    reader and then for it, and each request has the deadline of a read, 60 s."""
    file = {small_file(3): small.files[small_file(3)]}
    with LyingRegistry(small.layout) as registry, mounted_from(registry, lazyfs) as root, reader:
        registry.lie = silent
        caller = reader(root, file)
        await_end(caller.process, 150)
        assert caller.report().away == [small_file(3)]
        registry.recover()
        reader(root, file).check()


def test_one_registry_does_not_stop_another(lazyfs: Lazyfs, small: SmallImage, reader: Readers, tmp_path: Path) -> None:
    """200 readers of a registry that never answers, each of another file: misses of another image are brought all the same."""
    stuck = build(tmp_path / "stuck", STUCK, seed="stuck")
    names = [small_file(number) for number in range(STUCK)]
    with (
        LyingRegistry(stuck.layout) as first,
        LyingRegistry(small.layout) as second,
        mounted_from(first, lazyfs) as dead,
        mounted_from(second, lazyfs) as alive,
        reader,
    ):
        first.lie = silent
        with reading_at_once(dead, names) as readers:
            lazyfsd = Lazyfsd(lazyfs.store)
            assert any(lazyfsd.waiting() >= STUCK for _ in moments()), lazyfsd.waiting()
            reader(alive, small.files).check()
            # At most for a moment, in which their lookups become reads, they are fewer.
            assert any(lazyfsd.waiting() >= STUCK for _ in moments()), lazyfsd.waiting()
            assert readers.poll() is None, "one of them has ended"
        first.recover()
        reader(dead, stuck.files).check()


@pytest.mark.parametrize("lie", [gone, silent])
def test_what_two_registries_have(lie: Lie, lazyfs: Lazyfs, small: SmallImage, reader: Readers) -> None:
    """Two images with the same files, from a registry that is lost and one that is not: both mounts are served."""
    with (
        LyingRegistry(small.layout) as first,
        LyingRegistry(small.layout) as second,
        mounted_from(first, lazyfs) as lost,
        mounted_from(second, lazyfs) as sound,
        reader,
    ):
        first.lie = lie
        reader(sound, small.files).check()
        reader(lost, small.files).check()
        assert second.ranges


@contextmanager
def reading_at_once(root: Path, names: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads each of these files in a thread of its own; it ends when the first of them has."""
    script = "import sys,threading,os; [threading.Thread(target=lambda n=n: (open(n,'rb').read(), os._exit(1))).start() for n in sys.argv[1:]]"
    with subprocess.Popen([sys.executable, "-c", script, *names], cwd=root) as process:
        try:
            yield process
        finally:
            process.kill()
            await_end(process.pid)


@pytest.mark.parametrize("folders", [("objects", "arrived"), ("objects",), ("arrived",)])
def test_objects_removed_by_hand(folders: tuple[str, ...], lazyfs: Lazyfs, small: SmallImage, reader: Readers) -> None:
    """Files removed from a store under a mount come again: at once where somebody opens them anew, and whoever has them keeps them."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root, reader:
        reader(root, small.files).check()
        for folder in folders:
            for path in (lazyfs.store / folder).iterdir():
                path.unlink()
        reader(root, small.files).check()
        reconfigure(root)
        reader(root, small.files).check()
        reconfigure(root)
        reader(root, small.files).check()
        names = {path.name for path in (lazyfs.store / "arrived").iterdir()}
        if "objects" in folders:
            assert names == {path.name for path in (lazyfs.store / "objects").iterdir()}
            assert object_name(small.files["first"]) in names


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of a few MB."""
    image, at = tmp_path / "disk", tmp_path / "at"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(6 << 20)
    run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image)
    run("mount", "-o", "loop", image, at)
    yield at
    run("umount", at)


def test_a_full_disk(lazyfs: Lazyfs, reader: Readers, full_disk: Path, tmp_path: Path) -> None:
    """What a store has no room for is read all the same, again and again; nothing is half there, and all can be unmounted."""
    lazyfs.store = full_disk / "store"
    files = {f"{number}": os.urandom(33_000 + number) for number in range(200)} | {"large": os.urandom(1_000_000)}
    image = build_of(tmp_path, files)
    with lazyfs.mounted(image.converted, "--background", "off", mode="native") as root, reader:
        for _ in range(2):
            reader(root, image.files).check()
        lazyfsd = Lazyfsd(lazyfs.store)
        assert lazyfsd.count(root, "unkept")
        room = os.statvfs(full_disk)
        assert room.f_bavail * room.f_frsize < 200_000
        for path in (lazyfs.store / "objects").iterdir():
            assert path.stat().st_size in {len(data) for data in files.values()}
    assert remains(lazyfs.store) == []


def test_a_disk_that_is_full_from_the_start(lazyfs: Lazyfs, small: SmallImage, full_disk: Path, tmp_path: Path) -> None:
    """Where not even an image's metadata finds room, nothing is mounted, and nothing is left but an error that says so."""
    lazyfs.store = full_disk / "store"
    root = tmp_path / "root"
    root.mkdir()
    with lazyfs.mounted(small.converted, "--background", "off", mode="native"):
        pass
    for folder in ("erofs", "documents"):
        for path in (lazyfs.store / folder).iterdir():
            path.unlink()
    with (full_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while ballast.write(bytes(4096)) == 4096:
            pass
    done = lazyfs.run("mount", small.converted, root, "--store", lazyfs.store, "--mode", "native", code=5)
    assert b"space" in done.stderr.lower() or b"full" in done.stderr.lower()
    assert not root.is_mount()
    assert remains(lazyfs.store) == []
