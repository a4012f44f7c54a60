"""containerd and its clients, with lazyfsd as its snapshotter: what is pulled lazily runs, and nothing is left when it is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.containerd import Containerd
from tests.docker_registry import Registry
from tests.plugin import NAME, Plugin, plugin_at

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer]

HELLO = ("python3", "-c", 'print("hello")')


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    with plugin_at() as running:
        yield running


@pytest.fixture
def containerd(plugin: Plugin) -> Iterator[Containerd]:
    with Containerd(plugin.folder / "c", {NAME: plugin.socket}) as running:
        yield running


def test_a_lazy_image_is_pulled_and_runs(
    plugin: Plugin, containerd: Containerd, shared_registry: Registry, converted: Callable[[str], str]
) -> None:
    """rpull brings no layer, `ctr run` says hello, and after the image is gone so is everything."""
    reference = converted("python")
    before = len(shared_registry.requests())
    name = containerd.rpull(reference, NAME)
    kinds = [kind for _, kind in containerd.snapshots(NAME).values()]
    assert kinds == ["Committed"] * 3
    assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
    assert not containerd.ctr("content", "ls", "-q").stdout.count(b"x"), before
