"""Kubernetes' way to an image: CRI pulls it lazily, pods run of it, and what it removes is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.containerd import PYTHON_HELLO, Containerd
from tests.cri.client import Cri
from tests.cri.pause import push_pause
from tests.docker_registry import Registry
from tests.lazyfsd import moments
from tests.plugin import NAME, Plugin, plugin_at

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.images]


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    with plugin_at() as running:
        yield running


@pytest.fixture(scope="module")
def cri(plugin: Plugin, shared_registry: Registry) -> Iterator[Cri]:
    pause = push_pause(plugin.folder / "pause", shared_registry)
    with (
        Containerd(plugin.folder / "c", {NAME: plugin.socket}, pause) as containerd,
        Cri(containerd.folder / "socket", plugin.folder / "logs") as client,
    ):
        client.version()
        yield client


def test_a_pod_runs_of_a_lazy_image(cri: Cri, plugin: Plugin, shared_registry: Registry, converted: Callable[[str], str]) -> None:
    """Pulled without a layer, run as root, as a user by name and by number; removed, nothing of it is left."""
    name = converted("python").removeprefix("docker://")
    cri.pull(name)
    assert [row.reason for row in plugin.rows().values()] == [""] * 3
    assert all(row.lazy for row in plugin.rows().values())
    with cri.pod() as pod:  # its own image is an ordinary one
        assert pod.run(name, *PYTHON_HELLO).stdout == "hello\n"
        assert pod.run(name, "sh", "-c", "id -un; sleep 0.1", user="www-data").stdout == "www-data\n"
        assert pod.run(name, "sh", "-c", "id -u; sleep 0.1", uid=1234).stdout == "1234\n"
    cri.remove_image(name)
    for image in cri.list_images():
        cri.remove_image(image.id)
    for _ in moments():
        if not plugin.rows():
            break
    assert plugin.rows() == {}
