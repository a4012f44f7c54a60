"""containerd with the configuration that systemd/containerd/ shows: what is pulled is lazy, whoever pulls it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.doctor.containerd import examine_containerd
from tests.containerd import CONFIG, Containerd
from tests.cri.client import Cri
from tests.lazyfsd import moments
from tests.plugin import Plugin, plugin_at

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer, pytest.mark.images]

SHOWN = Path(__file__).parents[2] / "systemd" / "containerd"
NAME = "lazyfs"
MACHINE = {
    1: '[plugins."io.containerd.grpc.v1.cri"]\n  restrict_oom_score_adj = true\n  disable_cgroup = true\n',
    2: '[plugins."io.containerd.cri.v1.runtime"]\n  restrict_oom_score_adj = true\n  disable_cgroup = true\n',
}
"""What the machine that runs tests may lack; containerd's CRI does not start without."""


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    with plugin_at() as running:
        yield running


@pytest.fixture
def containerd(plugin: Plugin) -> Iterator[Containerd]:
    """Debian's, or another one, with what is shown for its version and no more than a test needs."""
    made = Containerd(plugin.folder / "c")
    version, shown = re.split(r"(?m)^(?=# One name)", (SHOWN / f"containerd-{made.major}.toml").read_text(), maxsplit=1)
    own = re.sub(r"^version = .*\n|^disabled_plugins.*\n", "", CONFIG.format(folder=made.folder, disabled=""), flags=re.MULTILINE)
    shown = shown.replace("/run/lazyfs/snapshots.sock", str(plugin.socket))
    (made.folder / "config.toml").write_text(version + own + MACHINE[made.major] + shown)
    with made as running:
        yield running


def test_shown_configuration(
    plugin: Plugin, containerd: Containerd, converted: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lazyfs doctor` finds nothing missing; CRI and the client at hand pull lazily, and overlayfs is still there for others."""
    monkeypatch.setenv("PATH", containerd.environment["PATH"])  # where the containerd is whose version is asked for
    found = examine_containerd(containerd.folder / "config.toml", {"containerd": plugin.socket})
    assert {each.verdict for each in found} == {"ok"}
    reference = converted("python")
    with Cri(containerd.folder / "socket", plugin.folder / "logs") as cri:
        cri.version()
        cri.pull(reference.removeprefix("docker://"))
        assert lazy(plugin) == [True] * 3
        for image in cri.list_images():
            cri.remove_image(image.id)
    for _ in moments():
        if not plugin.rows():
            break
    containerd.pull_lazily(reference, NAME)
    assert lazy(plugin) == [True] * 3
    containerd.pull(converted("busybox"))
    assert len(plugin.rows()) == 3


def lazy(plugin: Plugin) -> list[bool]:
    """Of each snapshot that there is, whether it is a lazy layer."""
    return [row.lazy is not None for row in plugin.rows().values()]
