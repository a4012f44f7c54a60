"""What the tests of mounts share: one small image for all of them."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containerd import Containerd
from tests.plugin import NAME, Plugin, plugin_at
from tests.readers import Readers
from tests.small_image import SmallImage, build
from tests.snapshot_lab import Lab
from tests.snapshots_client import SnapshotsClient
from tests.wheelhouse import fill
from tests.workers import once


@pytest.fixture(scope="session")
def small(session_folder: Path) -> SmallImage:
    """The small image, built and converted. Its files are not to be changed."""
    return build(session_folder / "small")


@pytest.fixture(scope="session")
def wheels(run_folder: Path) -> Path:
    """What systemd/install needs to install lazyfs without the network."""
    folder = run_folder / "wheels"
    once(run_folder, folder.name, lambda: fill(folder, "lazyfs[mount,containerd]", "hatchling"))
    return folder


@pytest.fixture
def seed() -> str:
    """Of what a test draws by chance: a failure prints it, and LAZYFS_SEED repeats it."""
    return os.environ.get("LAZYFS_SEED", "") or str(random.SystemRandom().randrange(10**6))


@pytest.fixture
def reader(tmp_path: Path) -> Readers:
    """Call it with a mount and files: a process reads them. To be left before the mount is."""
    return Readers(tmp_path)


@pytest.fixture(scope="module")
def snapshotter() -> Iterator[Plugin]:
    """A lazyfsd that serves a containerd: one for a file's tests."""
    with plugin_at() as running:
        yield running


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    """A lazyfsd that serves one containerd, for one test. It fetches nothing that nobody has asked for."""
    with plugin_at(background=False) as running:
        yield running


@pytest.fixture
def containerd(plugin: Plugin) -> Iterator[Containerd]:
    """The one that it serves."""
    with Containerd(plugin.folder / "c", {NAME: plugin.socket}) as running:
        yield running


@pytest.fixture
def socket_client(snapshotter: Plugin) -> Iterator[SnapshotsClient]:
    """A connection of the test's own."""
    with SnapshotsClient(snapshotter.socket) as client:
        yield client


@pytest.fixture
def lab(snapshotter: Plugin, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Snapshots of the test's own; whatever it leaves is removed, the youngest first."""
    with SnapshotsClient(snapshotter.socket) as client:
        snapshots = snapshotter.store / "containerd" / "containerd" / "snapshots"
        yield Lab(client, snapshots, tmp_path, re.sub(r"\W", "-", request.node.name))
        for info in reversed(list(client.walk())):
            client.remove(info.key)
