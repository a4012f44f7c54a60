"""Where things are measured: a registry on tmpfs, images and stores there or on a disk; gone when left."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.commands import Lazyfs, run
from tests.docker_registry import Registry
from tests.images.build import Builder

TMPFS = Path("/dev/shm")
"""Where no disk has a say."""
DISK = Path("/var/tmp")
DISK_SIZE = 40 << 30
"""Bytes, of which only those that are written take room."""
ROUNDS = 5
_MODULES = (
    "converter.command", "lazyfs.cli.main", "lazyfs.cli.mount", "lazyfs.cli.pull", "lazyfs.cli.run", "lazyfs.cli.umount",
    "lazyfs.containerd.server", "lazyfs.daemon.__main__", "lazyfs.daemon.service", "lazyfs.erofs.__main__", "lazyfs.portable.mount",
    "lazyfs.pull.pull", "lazyfs.source.repository",
)  # fmt: skip
"""With all that they import: what is measured."""
LAZYFS = Path(sys.executable).with_name("lazyfs")
"""The command as a user has it."""


class Place:
    """Images come by the names of tests/images; each is built, pushed and converted when it is first asked for."""

    def __init__(self, folder: Path, registry: Registry, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.registry = registry
        self.say = say
        """Shows a line about the current step."""
        self.lazyfs = Lazyfs(folder / "lazyfs")
        # What is spooled is not to depend on a disk either. And modules are compiled once, as where lazyfs is installed, whatever this
        # checkout's environment says of that.
        own = {"TMPDIR": str(folder), "PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
        self.environment = self.lazyfs.environment = self.lazyfs.environment | own
        run(sys.executable, "-c", f"import {', '.join(_MODULES)}", env=self.environment)
        self.built = functools.cache(self._built)
        self.original = functools.cache(self._original)
        self.lazy = functools.cache(self._lazy)

    def _built(self, name: str) -> str:
        self.say(f"image {name}: built, unless it is there")
        return Builder().build(name, self.say)

    def _original(self, name: str) -> str:
        return self.registry.push(self.built(name), f"original/{name}:v1")

    def _lazy(self, name: str) -> str:
        reference = f"docker://{self.registry.address}/lazy/{name}:v1"
        self.convert(self.built(name), reference)
        return reference

    def convert(self, source: str, target: str, *options: str | Path) -> None:
        """`lazyfs convert`, at default options where none are given."""
        self.say(f"lazyfs convert {source} {target}")
        self.lazyfs.run("convert", source, target, *options, timeout=1800)

    def clear_store(self) -> None:
        """As on a machine that has never seen an image."""
        shutil.rmtree(self.lazyfs.store, ignore_errors=True)

    def new_folder(self) -> Path:
        """An empty folder. It stays until the end: ext4 does not take inodes that were freed within the last minute, and looks
        through all of them for each new file, which took 1 ms after a store of 10,000 files had been removed."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def new_store(self) -> None:
        """An empty store, as on a machine that has never seen an image; the one before stays."""
        self.lazyfs.store = self.new_folder() / "store"

    def seconds(self, *command: str | Path, timeout: float = 600) -> float:
        """From the exec of a program to its end. AssertionError, with what it said, where it failed."""
        start = time.perf_counter()
        run(*command, env=self.environment, timeout=timeout)
        return time.perf_counter() - start


@contextlib.contextmanager
def open_place(say: Callable[[str], None], *, on_disk: bool = False) -> Iterator[Place]:
    """A place on tmpfs, or in a new ext4 file system on the disk, with a registry that runs; no mount stays."""
    if os.geteuid() != 0:
        raise SystemExit("bench builds images and mounts them for all users: run it as root")
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-bench-", dir=TMPFS, ignore_cleanup_errors=True) as temporary,
        Registry(Path(temporary) / "registry") as registry,
        _disk(Path(temporary) / "disk") if on_disk else contextlib.nullcontext(Path(temporary)) as folder,
    ):
        place = Place(folder, registry, say)
        try:
            yield place
        finally:
            place.lazyfs.close()


@contextlib.contextmanager
def _disk(mount: Path) -> Iterator[Path]:
    """An ext4 file system in a file on DISK, mounted at `mount`: what others remove from theirs (see new_folder) is not felt."""
    with tempfile.NamedTemporaryFile(prefix="lazyfs-bench-", dir=DISK) as file:
        file.truncate(DISK_SIZE)
        # Neither now nor in the background is the room for inodes written.
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", file.name)
        mount.mkdir()
        run("mount", "-o", "loop,noinit_itable", file.name, mount)
        try:
            yield mount
        finally:
            run("umount", "--lazy", mount)
