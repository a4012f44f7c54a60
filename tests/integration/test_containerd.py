"""containerd and its clients, with lazyfsd as its snapshotter: what is pulled runs, lazy, mixed or not, and nothing is left of it."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import Lazyfs, run
from tests.containerd import Containerd
from tests.docker_registry import Registry
from tests.lazyfsd import moments
from tests.mixed_image import mix
from tests.plugin import NAME, Plugin, plugin_at
from tests.tree import Record, compare, walk

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer, pytest.mark.images]

HELLO = ("python3", "-c", 'print("hello")')
OWN_NAMES = (b"stargz.index.json", b".no.prefetch.landmark", b".prefetch.landmark")
Named = Callable[[str], str]


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    """One for the module: tests have images of their own, and take them away."""
    with plugin_at() as running:
        yield running


@pytest.fixture(scope="module")
def containerd(plugin: Plugin) -> Iterator[Containerd]:
    with Containerd(plugin.folder / "c", {NAME: plugin.socket}) as running:
        yield running


@pytest.fixture(scope="module")
def mixed(images: Named, session_folder: Path, shared_registry: Registry) -> Callable[[str, str], str]:
    """`mixed("python", "lol")` is that image, in the registry, with the layers lazy that have an `l`."""

    @functools.cache
    def converted(name: str) -> str:
        layout = f"oci:{session_folder}/converted-{name}:v1"
        Lazyfs(session_folder / "convert").run("convert", images(name), layout, timeout=600)
        return layout

    def of(name: str, which: str) -> str:
        made = mix(images(name), converted(name), [letter == "l" for letter in which], session_folder / f"{name}-{which}")
        return shared_registry.push(made, f"mixed/{name}-{which}:v1")

    return of


@contextmanager
def shown(containerd: Containerd, folder: Path) -> Iterator[Path]:
    """What a new snapshot of the only image shows. (A view of ctr's is nobody's, and containerd's collector may take it away.)"""
    snapshots = containerd.snapshots(NAME)
    parents = {parent for parent, _ in snapshots.values()}
    (top,) = snapshots.keys() - parents
    folder.mkdir()
    containerd.ctr("snapshots", "--snapshotter", NAME, "prepare", "look", top)
    told = containerd.ctr("snapshots", "--snapshotter", NAME, "mounts", str(folder), "look").stdout.decode()
    subprocess.run(["sh", "-ec", told], check=True)
    try:
        yield folder
    finally:
        run("umount", folder)
        containerd.ctr("snapshots", "--snapshotter", NAME, "rm", "look")


def remove(containerd: Containerd, name: str, plugin: Plugin) -> None:
    """Remove an image, the only one, and see that nothing is left."""
    containerd.ctr("images", "rm", "--sync", name)
    assert containerd.snapshots(NAME) == {}
    folder = plugin.store / "containerd" / "containerd" / "snapshots"
    for _ in moments():
        if not (list(folder.iterdir()) or mounted(plugin)):
            break
    assert list(folder.iterdir()) == []
    assert mounted(plugin) == []


def mounted(plugin: Plugin) -> list[str]:
    """What is mounted, but for the gate, which a service keeps."""
    return [path for path in plugin.left() if path != str(plugin.store / "gate")]


def test_a_lazy_image_is_pulled_and_runs(
    plugin: Plugin, containerd: Containerd, shared_registry: Registry, converted: Named
) -> None:
    """rpull moves a manifest, a config and the TOCs; `ctr run` says hello; nothing is left when the image is removed."""
    reference = converted("python")
    before = len(shared_registry.requests())
    name = containerd.rpull(reference, NAME)
    asked = [request for request in shared_registry.requests()[before:] if request.agent != "lazyfs"]
    assert len([request for request in asked if request.is_blob]) == 1, "containerd asks for the config, and for no layer"
    assert [kind for _, kind in containerd.snapshots(NAME).values()] == ["Committed"] * 3
    assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
    remove(containerd, name, plugin)


@pytest.mark.umoci
@pytest.mark.parametrize(
    ("image", "which"),
    # Of edge, containerd itself unpacks another tree: it drops times before 1970, and lists some whiteouts.
    [("edge", "lllll"), ("python", "olo"), ("python", "lol"), ("python", "ool"), ("python", "ooo")],
)
def test_mixed_images_show_the_unpacked_tree(
    image: str,
    which: str,
    plugin: Plugin,
    containerd: Containerd,
    mixed: Callable[[str, str], str],
    unpacked: Callable[[str], dict[bytes, Record]],
    tmp_path: Path,
) -> None:
    """Lazy and unpacked layers in every order are one tree: opaque directories, whiteouts and implied directories included."""
    name = containerd.rpull(mixed(image, which), NAME)
    rows = plugin.rows().values()
    assert len([row for row in rows if row.lazy]) == which.count("l")
    with shown(containerd, tmp_path / "view") as root:
        assert not compare(unpacked(image), walk(root), ignore=OWN_NAMES)
    remove(containerd, name, plugin)
