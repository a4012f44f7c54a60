"""`lazyfs` commands without the time that Python takes to start and to import: each is a fork of a process that has done so.

The process forked from has one thread and no event loop, as a shell's child has; what a command does is the same as always.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

_PRELOADED = ["lazyfs.cli.main", "lazyfs.cli.mount", "lazyfs.cli.convert", "lazyfs.portable.mount", "lazyfs.source.repository"]
_PRELOADED += ["converter.image", "tests.prefork"]


class Prefork:
    """Runs commands; not to be used for what should see a fresh interpreter."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    def run(self, *arguments: str | Path, said: Path, environment: dict[str, str] | None = None, timeout: float = 60) -> int:
        """Run `lazyfs` with these arguments; its exit code. What it says on either stream goes to `said`."""
        home = {"HOME": str(self._home), "XDG_CACHE_HOME": str(self._home / "cache"), **(environment or {})}
        process = self._context.Process(target=_main, args=([str(argument) for argument in arguments], said, home))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            return -1
        return process.exitcode


def _main(arguments: list[str], said: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for name in [name for name in os.environ if name.lower() in {"http_proxy", "https_proxy", "all_proxy"}]:
        del os.environ[name]
    target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)
    from lazyfs.cli.main import main

    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
