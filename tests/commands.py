"""Runs programs as a user does: in a process, with a deadline, and with their output in the error if they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Done = subprocess.CompletedProcess[bytes]
"""A program's end: `returncode`, `stdout`, `stderr`."""

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def run(*command: str | Path, code: int | None = 0, timeout: float = 120, **more: Any) -> Done:
    """Run a program to its end. AssertionError, with what it said, unless it ends with `code` (None: any)."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False, **more)
    if code is not None and done.returncode != code:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}, not {code}:\n{said[-8000:]}")
    return done


def umoci_unpack(image: str, target: Path) -> Path:
    """The root file system that umoci makes of an image in `oci:` notation."""
    run("umoci", "unpack", "--image", image.removeprefix("oci:"), target, timeout=600)
    return target / "rootfs"


class Lazyfs:
    """`lazyfs` in a home of its own, under `folder`; its `store` is there as well, for the commands that take one."""

    def __init__(self, folder: Path) -> None:
        self.store, self._home, self._mounts = folder / "store", folder / "home", folder / "mounts"
        for path in (self._home, self._mounts):
            path.mkdir(parents=True, exist_ok=True)
        # Neither the user's credentials nor a proxy: tests access only loopback.
        # And Python's default buffering, as for users.
        kept = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES and name != "PYTHONUNBUFFERED"}
        self.environment = kept | {"HOME": str(self._home), "XDG_CACHE_HOME": str(self._home / "cache")}

    def run(self, *arguments: str | Path, code: int | None = 0, timeout: float = 120, **more: Any) -> Done:
        """Run to the end; an unexpected exit code or any traceback is an AssertionError."""
        command = (sys.executable, "-m", "lazyfs", *arguments)
        done = run(*command, code=code, timeout=timeout, **{"env": self.environment, **more})
        assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
        return done

    def json(self, *arguments: str | Path, **more: Any) -> Any:
        """Run with --json; returns what it prints."""
        return json.loads(self.run(*arguments, "--json", **more).stdout)

    @contextmanager
    def mounted(self, image: str, *options: str | Path, mode: str = "portable") -> Iterator[Path]:
        """Mount with this store, in a new folder; unmounted at the end."""
        directory = self._mounts / str(len(list(self._mounts.iterdir())))
        directory.mkdir()
        self.run("mount", image, directory, "--store", self.store, "--mode", mode, *options)
        try:
            yield directory
        finally:
            if directory.is_mount():
                self.run("umount", directory)

    def close(self) -> None:
        """Unmount everything that a failed test left."""
        for directory in self._mounts.iterdir():
            if directory.is_mount():
                run(sys.executable, "-m", "lazyfs", "umount", "--lazy", directory, code=None, timeout=30)
