"""What the tests of the snapshotter's parts share."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.containerd.scripted import ScriptedImage


@pytest.fixture
def image(tmp_path: Path) -> ScriptedImage:
    """An image of two lazy layers, in a registry without requests so far."""
    return ScriptedImage(tmp_path / "image", {"a": b"first" * 1000, "b": b"second" * 1000}, {"c": b"third" * 1000})


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(folder / "outer"))
        listening.listen()
        yield listening
