"""What a piece of code does with files, in order: what it syncs, under which name it puts it. A power cut keeps to that order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def watched() -> Iterator[list[tuple[str, str, int]]]:
    """Yield (what, name, bytes) of every fsync and rename of this process; both are done. A synced file goes by the name that it has then."""
    done: list[tuple[str, str, int]] = []
    fsync, rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("synced", os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))

    def move(source: str | Path, target: str | Path) -> None:
        rename(source, target)
        done.append((f"renamed from {source}", os.fspath(target), os.stat(target).st_size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "rename", move)
        patch.setattr(os, "replace", move)
        yield done
