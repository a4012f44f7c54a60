"""A dialect that no product file knows (tests/dialect): it needs nothing but its registration to be mounted, pulled, and taken over."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.commands import Lazyfs
from tests.containerd import Containerd
from tests.dialect.front import FRONT
from tests.dialect.writing import PYTHONPATH, fronted_image
from tests.lazy_tree import labels_of
from tests.lying_registry import LyingRegistry
from tests.plugin import NAME, plugin_at
from tests.small_image import SmallImage
from tests.snapshot_trees import mounted
from tests.snapshots_client import SnapshotsClient, refused

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def front(small: SmallImage, session_folder: Path) -> SmallImage:
    """The small image in that dialect."""
    return fronted_image(small, session_folder / "front")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that a test starts knows the dialect."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def wrong(root: Path, image: SmallImage) -> list[str]:
    return [name for name, data in image.files.items() if (root / name).read_bytes() != data]


@pytest.mark.root
@pytest.mark.parametrize("mode", ["portable", "native"])
def test_it_mounts(mode: str, front: SmallImage, tmp_path: Path) -> None:
    """Every byte of every file, fetched lazily, and again without the image's source."""
    lazyfs = Lazyfs(tmp_path)
    lazyfs.environment["PYTHONPATH"] = PYTHONPATH
    with LyingRegistry(front.layout) as registry:
        image = f"{registry.image}@{front.digest}"
        options = ("--lazy-only", "--background", "off", "--plain-http")
        with lazyfs.mounted(image, *options, mode=mode) as root:
            assert not wrong(root, front)
            assert not (root / "gone").exists()
            assert (root / "bin/tool").stat().st_nlink == 2
        before = len(registry.server.requests)
        with lazyfs.mounted(image, *options, mode=mode) as root:
            assert not wrong(root, front)
        assert len(registry.server.requests) == before
    lazyfs.close()


def test_it_is_inspected_and_verified(front: SmallImage, tmp_path: Path) -> None:
    """Each chunk is held against the tar that a full pull would unpack. Without its registration the image is ordinary."""
    lazyfs = Lazyfs(tmp_path)
    lazyfs.environment["PYTHONPATH"] = PYTHONPATH
    assert {layer["format"] for layer in lazyfs.json("inspect", front.converted)["layers"]} == {FRONT.name}
    lazyfs.run("verify", front.converted)
    del lazyfs.environment["PYTHONPATH"]
    reasons = [layer["reason"] for layer in lazyfs.json("inspect", front.converted, code=3)["layers"]]
    assert all("has no annotation containerd.io/snapshot/stargz/toc.digest" in reason for reason in reasons), reasons


@pytest.mark.root
def test_containerd_prepares_it(front: SmallImage, tmp_path: Path) -> None:
    """A Prepare with its label is answered at once; the row names the dialect, so that the next daemon serves what is missing."""
    with LyingRegistry(front.layout) as registry, plugin_at(background=False) as plugin:
        labels = labels_of(front.layout, registry.server.host)
        assert FRONT.annotations[0] in labels
        with SnapshotsClient(plugin.socket) as client:
            with refused(grpc.StatusCode.ALREADY_EXISTS):
                client.prepare("test/extract-1", labels=labels)
            (row,) = plugin.rows().values()
            assert row.lazy is not None
            assert row.lazy.dialect == FRONT.name
            with mounted(client.view("view", row.key), tmp_path) as root:
                first, *rest = (name for name in front.files if name != "first")
                assert (root / first).read_bytes() == front.files[first]
                plugin.kill()
                plugin.wait_until_ready()
                assert [name for name in rest if (root / name).read_bytes() != front.files[name]] == []
            client.remove("view")
            client.remove(row.key)


@pytest.mark.root
@pytest.mark.containerd
@pytest.mark.peer
def test_containerd_pulls_it(front: SmallImage, tmp_path: Path) -> None:
    """containerd makes labels of the annotation, and neither fetches nor unpacks a layer."""
    with LyingRegistry(front.layout) as registry, plugin_at() as plugin:
        with Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd:
            containerd.pull_lazily(f"{registry.image}:v1", NAME)
            assert [row.lazy.dialect for row in plugin.rows().values() if row.lazy] == [FRONT.name] * 2
            with containerd.shown(NAME, tmp_path / "view") as root:
                assert not wrong(root, front)
            containerd.prune()
            plugin.await_empty()
