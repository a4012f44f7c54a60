"""Foreign layers that only their URL serves: mounted natively, after a restart of lazyfsd as well, run, verified, and pulled into containerd."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.commands import Lazyfs
from tests.containerd import Containerd
from tests.lazyfsd import Lazyfsd
from tests.plugin import NAME, plugin_at
from tests.quirk_table import FOREIGN
from tests.quirks import foreign
from tests.quirky_registry import QuirkyRegistry, serving
from tests.small_image import SmallImage

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture(params=["lazy", "eager"])
def registry(small: SmallImage, request: pytest.FixtureRequest) -> Iterator[QuirkyRegistry]:
    """It has the manifest and the config; the layers are with a server that refuses tokens."""
    layout = small.layout if request.param == "lazy" else small.original
    with serving(QuirkyRegistry(layout, foreign(FOREIGN, "{right}")(), tokens=True)) as registry:
        yield registry


def test_mounted_and_verified(registry: QuirkyRegistry, small: SmallImage, lazyfs: Lazyfs) -> None:
    """A killed lazyfsd learns the URLs once more, from the manifest in the store."""
    image = f"docker://{registry.image}"
    with lazyfs.mounted(image, "--background", "off", mode="native") as root:
        assert (root / "first").read_bytes() == small.files["first"]
        Lazyfsd(lazyfs.store).kill()
        assert not small.wrong_files(root)
    if registry.path == small.layout:
        lazyfs.run("verify", image)


@pytest.mark.containerd
def test_pulled(registry: QuirkyRegistry, small: SmallImage, lazyfs: Lazyfs) -> None:
    """The plugin leaves the layers to be unpacked, lazy or not: containerd gets their blobs from the URLs."""
    with plugin_at(background=False) as plugin, Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd:
        options = ["--address", containerd.folder / "socket", "--store", lazyfs.store, "--json"]
        pulled = json.loads(lazyfs.run("pull", registry.image, *options).stdout)
        assert [layer["lazy"] for layer in pulled["layers"]] == [False] * len(pulled["layers"])
        with containerd.shown(NAME, plugin.folder / "shown", pulled["layers"][-1]["chain_id"]) as root:
            assert not small.wrong_files(root)
