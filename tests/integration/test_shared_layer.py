"""Two images share a layer and are used at the same time in one lazyfsd: the layer is fetched once.

Each image has its own registry, so that they have only the store in common.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import Lazyfs
from tests.containerd import Containerd
from tests.lazyfsd import moments
from tests.lying_registry import LyingRegistry
from tests.mixed_image import join
from tests.plugin import NAME, Plugin, plugin_at
from tests.readers import Readers
from tests.small_image import build_of

pytestmark = [pytest.mark.fuse, pytest.mark.root]

LATE = 0.02
MOST = 1.1
"""How often a layer may be fetched, as a multiple of its size: each image may fetch the TOC, and runs read over small gaps."""


class Pair(NamedTuple):
    """Two images: a layer that both have, and a small one of their own."""

    layouts: tuple[Path, Path]
    shared: str
    """The digest of the layer's blob."""
    size: int
    files: dict[str, bytes]

    @contextmanager
    def served(self) -> Iterator[tuple[LyingRegistry, LyingRegistry]]:
        """A registry for each image."""
        with LyingRegistry(self.layouts[0]) as one, LyingRegistry(self.layouts[1]) as other:
            one.server.late = other.server.late = LATE
            yield one, other

    def check_fetched_once(self, *registries: LyingRegistry) -> None:
        """All of the shared layer was fetched, and almost none of it twice."""
        fetched = [registry.asked_for(self.shared) for registry in registries]
        assert 0.95 < sum(fetched) / self.size < MOST, (fetched, self.size)


@pytest.fixture(scope="module")
def pair(session_folder: Path) -> Pair:
    """The files are too large to be fetched together with a neighbour, and some have many chunks."""
    chance = random.Random(7)
    files = {f"files/{number % 20}/{number}": chance.randbytes(33_000 + number) for number in range(300)}
    files |= {f"large/{number}": chance.randbytes(700_000 + number) for number in range(8)}
    folder = session_folder / "pair"
    shared = build_of(folder / "shared", files)
    layouts = []
    for name in ("one", "other"):
        own = build_of(folder / name, {"own": name.encode()})
        layouts.append(folder / f"{name}-image")
        join([shared.converted, own.converted], layouts[-1])
    manifest = json.loads((shared.layout / "blobs" / "sha256" / shared.digest.removeprefix("sha256:")).read_bytes())
    (layer,) = manifest["layers"]
    return Pair((layouts[0], layouts[1]), layer["digest"], layer["size"], files)


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    """A lazyfsd with an empty store, which fetches the rest of what containerd has pulled in the background."""
    with plugin_at() as running:
        yield running


def mount(lazyfs: Lazyfs, plugin: Plugin, registry: LyingRegistry, root: Path, background: str) -> None:
    """Mount a registry's image natively at `root`, which is made."""
    root.mkdir()
    options = ("--store", plugin.store, "--mode", "native", "--background", background)
    lazyfs.run("mount", f"{registry.image}:v1", root, *options)


def pull(lazyfs: Lazyfs, plugin: Plugin, registry: LyingRegistry, containerd: Containerd) -> str:
    """Pull a registry's image into containerd, by lazyfsd. Returns the snapshot of its uppermost layer."""
    where = ("--address", str(containerd.folder / "socket"), "--store", str(plugin.store))
    top: str = lazyfs.json("pull", f"{registry.image}:v1", *where)["layers"][-1]["chain_id"]
    return top


@contextmanager
def roots(lazyfs: Lazyfs, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Mount points for two images, unmounted at the end."""
    found = folder / "one", folder / "other"
    try:
        yield found
    finally:
        for root in found:
            if root.is_mount():
                lazyfs.run("umount", root)


def await_all(plugin: Plugin, pair: Pair) -> None:
    """Until every file of the shared layer is in the store."""
    assert any(plugin.kept() >= len(pair.files) for _ in moments()), plugin.kept()


@pytest.mark.containerd
@pytest.mark.parametrize("background", ["wait", "off"])
def test_one_is_mounted_and_one_is_pulled(
    background: str, pair: Pair, lazyfs: Lazyfs, plugin: Plugin, reader: Readers, tmp_path: Path
) -> None:
    """Both start, complete and are read at the same time; also when only containerd's has a background fetch."""
    with (
        pair.served() as (one, other),
        Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd,
        roots(lazyfs, tmp_path) as (root, _),
    ):
        with ThreadPoolExecutor() as pool:
            mounting = pool.submit(mount, lazyfs, plugin, one, root, background)
            top = pool.submit(pull, lazyfs, plugin, other, containerd).result()
            mounting.result()
        with containerd.shown(NAME, tmp_path / "container", top) as container, reader:
            for each in [reader(at, pair.files, number) for number, at in enumerate((root, container))]:
                each.check()
        await_all(plugin, pair)
        pair.check_fetched_once(one, other)
        containerd.prune()


@pytest.mark.parametrize("background", ["on", "off"])
def test_two_are_mounted(background: str, pair: Pair, lazyfs: Lazyfs, plugin: Plugin, reader: Readers, tmp_path: Path) -> None:
    """Both start and are read at the same time, in different orders; also without a background fetch."""
    with pair.served() as registries, roots(lazyfs, tmp_path) as both:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda registry, root: mount(lazyfs, plugin, registry, root, background), registries, both))
        with reader:
            for each in [reader(root, pair.files, number) for number, root in enumerate(both * 2)]:
                each.check()
        await_all(plugin, pair)
        pair.check_fetched_once(*registries)
