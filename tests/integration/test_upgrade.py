"""Upgrades: an earlier lazyfsd serves mounts and a containerd, and that of this checkout takes over while they are used.

The next version must be able to read everything that outlives a process: notes and databases in the store, descriptors that the keeper
holds, the module and options that it starts, orders that a client sends again, rows of mounts and snapshots. test_states.py covers the
formats of the store.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from lazyfs.kernel.mountinfo import mounts
from tests.commands import Lazyfs, run
from tests.containerd import Containerd
from tests.earlier import COMMITS, Installation
from tests.lazyfsd import PATIENCE_S, moments
from tests.lying_registry import LyingRegistry
from tests.plugin import NAME, Plugin, plugin_folder
from tests.readers import Readers
from tests.small_image import SmallImage, build_of, content
from tests.unit.registry.scripted import Answer, Reply, Request

pytestmark = [pytest.mark.fuse, pytest.mark.root]

FILES = 400
LATE = 0.02
STALLS_AT = 3 << 19
"""How many bytes of a large answer arrive before it stalls."""
ARRIVED = 1 << 20
"""How many of them are kept at least: a pull into containerd writes 1 MiB at a time."""
SLACK = 1.1
"""Allows for runs that the upgrade interrupted, and for metadata."""


class Images(NamedTuple):
    """Two images that have no file in common."""

    read: SmallImage
    """Many files, too large to be fetched together with a neighbour."""
    arriving: SmallImage
    """One layer, larger than STALLS_AT."""


@pytest.fixture(scope="module")
def images(session_folder: Path) -> Images:
    folder = session_folder / "upgrade"
    return Images(
        build_of(folder / "read", {f"{number % 20}/{number}": content(number, 70_000) for number in range(FILES)}),
        build_of(folder / "arriving", {f"{number}": content(-number, 300_000) for number in range(1, 40)}),
    )


@pytest.fixture(params=COMMITS)
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    """An earlier version, installed."""
    return Installation(tmp_path / "installation", request.param)


@pytest.fixture
def plugin(installation: Installation) -> Iterator[Plugin]:
    """A lazyfsd of the earlier version, without background fetches for containerd's images."""
    with plugin_folder() as folder:
        running = Plugin(folder, background=False)
        running.environment |= installation.environment
        running.start()
        try:
            running.wait_until_ready()
            yield running
        finally:
            running.tidy_up()


@pytest.fixture
def command(lazyfs: Lazyfs, installation: Installation, tmp_path: Path) -> Iterator[Lazyfs]:
    """The command line, in the version that is installed when it runs. No mount is left, even where lazyfsd cannot take it away."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):  # with one of them set, lazyfsd does not carry out a pull
        lazyfs.environment.pop(name, None)
    lazyfs.environment |= installation.environment
    yield lazyfs
    for mount in mounts():
        if mount.path.is_relative_to(tmp_path):
            run("umount", "--lazy", mount.path, code=None)


def stall(_: Request, right: Answer) -> Answer:
    """A lie: a large answer stops half-way, and the connection stays open."""
    data = right.data if isinstance(right, Reply) else right
    return Reply(data[:STALLS_AT], "silence") if len(data) > STALLS_AT else right


def size(layout: Path) -> int:
    """Bytes of all blobs of an image."""
    return sum(blob.stat().st_size for blob in (layout / "blobs" / "sha256").iterdir())


@contextmanager
def under_way(command: Lazyfs, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is still running; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "lazyfs", *arguments], env=command.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.containerd
def test_what_runs_goes_on(
    installation: Installation, plugin: Plugin, command: Lazyfs, images: Images, reader: Readers, tmp_path: Path
) -> None:
    """Readers of a mount and of a container's root get every byte; a mount that waits for its image, and a pull, succeed. Nothing that
    had arrived is fetched again, and all snapshots can be removed."""
    command.store = plugin.store
    read, arriving = images
    with (
        LyingRegistry(read.layout) as registry,
        LyingRegistry(arriving.layout) as lazy,
        LyingRegistry(arriving.original) as ordinary,
        Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd,
    ):
        registry.server.late = LATE
        into = ("--address", str(containerd.folder / "socket"), "--store", str(plugin.store))
        top = command.json("pull", f"{registry.image}:v1", *into)["layers"][-1]["chain_id"]
        waiting = tmp_path / "waiting"
        waiting.mkdir()
        lazy.lie = ordinary.lie = stall
        with (
            command.mounted(f"{registry.image}:v1", "--background", "off", mode="native") as root,
            containerd.shown(NAME, tmp_path / "container", top) as container,
            under_way(command, "mount", f"{lazy.image}:v1", waiting, "--store", plugin.store, "--background", "wait") as mounting,
            under_way(command, "pull", f"{ordinary.image}:v1", *into) as pulling,
            reader,
        ):
            assert any(lazy.server.silences and ordinary.server.silences for _ in moments())
            files = list(read.files.items())
            readers = [reader((root, container)[number % 2], dict(files[number::4]), number) for number in range(4)]
            assert any(len(registry.ranges) > FILES // 3 for _ in moments())
            before = [each.asked_for() for each in (lazy, ordinary)]
            installation.upgrade()
            plugin.kill()
            assert all(each.is_running() for each in readers)
            assert (mounting.poll(), pulling.poll()) == (None, None)
            lazy.recover()
            ordinary.recover()
            for each in readers:
                each.check()
            for client in (mounting, pulling):
                _, said = client.communicate(timeout=PATIENCE_S)
                assert client.returncode == 0, said
            assert plugin.logged().count("taken over") == 1
            assert not arriving.wrong_files(waiting)
            command.run("umount", waiting)
        assert registry.asked_for() < SLACK * size(read.layout)
        for each, asked, layout in zip((lazy, ordinary), before, (arriving.layout, arriving.original), strict=True):
            assert each.asked_for() - asked < SLACK * (size(layout) - ARRIVED)
        containerd.prune()
        plugin.await_empty()


@pytest.mark.parametrize("mode", ["native", "portable"])
def test_what_it_has_fetched_is_not_fetched_again(
    mode: str, installation: Installation, command: Lazyfs, small: SmallImage, tmp_path: Path
) -> None:
    """With the registry away, the digest of a tag is still known, and a lazy and an eager image can be mounted and read."""
    with LyingRegistry(small.layout) as lazy, LyingRegistry(small.original) as eager:
        for registry in (lazy, eager):
            with command.mounted(f"{registry.image}:v1", "--background", "wait", mode=mode):
                pass
    installation.upgrade()
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    said = command.run("mount", f"{lazy.image}:v1", nowhere, "--store", command.store, "--mode", mode, code=4).stderr.decode()
    assert f"It was last seen as {lazy.image}@{small.digest}" in said
    for image in (f"{lazy.image}@{small.digest}", f"{eager.image}@{manifest_of(small.original)}"):
        with command.mounted(image, mode=mode) as root:
            assert not small.wrong_files(root)


def manifest_of(layout: Path) -> str:
    """The digest of the only image's manifest."""
    digest: str = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    return digest


def test_its_portable_mount_goes_on(installation: Installation, command: Lazyfs, small: SmallImage) -> None:
    """The mount's process stays the earlier version; the new commands show its status and unmount it."""
    with command.mounted(small.converted, mode="portable") as root:
        installation.upgrade()
        assert command.json("status", root)["mode"] == "portable"
        assert not small.wrong_files(root)
        command.run("umount", root)
        assert not root.is_mount()
