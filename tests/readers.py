"""Processes that read mounts for a test, which never accesses a mount that may not be served itself. Each is a tests/reader.py."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.lazyfsd import PATIENCE_S
from tests.reader import Report


class Reader:
    """A process that reads files of a mount, from its start on."""

    def __init__(self, root: Path, truth: dict[str, bytes], folder: Path, seed: object = 0) -> None:
        path = folder / f"truth-{random.randbytes(8).hex()}"
        path.write_bytes(pickle.dumps(truth))
        self._count = len(truth)
        command = [sys.executable, "-m", "tests.reader"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"root": str(root), "truth": str(path), "seed": seed}).encode() + b"\n")
        self._process.stdin.close()
        self._process.stdin = None

    @property
    def process(self) -> int:
        """Its pid."""
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def report(self) -> Report:
        """How it went. AssertionError when it hangs."""
        said, _ = self._process.communicate(timeout=PATIENCE_S)
        return Report(**json.loads(said.splitlines()[-1]))

    def check(self) -> Report:
        """Every file was read to its end, and was right."""
        report = self.report()
        assert (report.wrong, report.away, len(report.right)) == ([], [], self._count)
        return report

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_S)


class Readers:
    """Makes readers; at the end none is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: list[Reader] = []

    def __call__(self, root: Path, truth: dict[str, bytes], seed: object = 0) -> Reader:
        reader = Reader(root, truth, self._folder, seed)
        self._readers.append(reader)
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.close()
