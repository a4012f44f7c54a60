"""containerd, or lazyfsd, killed in the middle of pulls: the next pull and the next container work, and nothing is left over.

Every moment of a kill is drawn from a seed that a failure prints; LAZYFS_SEED repeats it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from tests.containerd import Containerd
from tests.lying_registry import LyingRegistry
from tests.plugin import NAME, Plugin, plugin_at
from tests.pulls import Pulls
from tests.tool_image import ToolImage, build_tool

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer]

LATE = 0.02
"""Seconds that each answer of the registry takes: a Prepare is as long as a Commit then."""
PATIENCE_S = 60
SERIES = [("lol", 3), *(pytest.param(which, 30, marks=pytest.mark.slow) for which in ("lll", "lol", "ooo"))]
FILES = {f"files/{number}": bytes([number]) * (33_000 + number) for number in range(1, 40)}


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> ToolImage:
    return build_tool(tmp_path_factory.mktemp("tool"), FILES, {"top": b"of the uppermost layer\n"})


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    with plugin_at() as running:
        yield running


@pytest.fixture
def pulls(request: pytest.FixtureRequest, plugin: Plugin, tool: ToolImage) -> Iterator[Pulls]:
    image = tool.mixed(request.param)
    with LyingRegistry.serving(image) as registry, Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd:
        registry.server.late = LATE
        yield Pulls(containerd, plugin, registry)


@pytest.mark.parametrize(("pulls", "kills"), SERIES, indirect=["pulls"])
def test_containerd_killed(pulls: Pulls, kills: int, seed: str) -> None:
    """At any moment of a pull: what it did not hear of is its own again, or goes with its garbage."""
    chance = random.Random(seed)
    cut = 0
    for _ in range(kills):
        with pulls.under_way(chance) as pull:
            cut += pull.poll() is None
            pulls.containerd.kill()
        pulls.containerd.begin()
        pulls.check()
    assert cut
    pulls.check_descriptors(kills)


@pytest.mark.parametrize(("pulls", "kills"), SERIES, indirect=["pulls"])
def test_lazyfsd_killed(pulls: Pulls, kills: int, seed: str) -> None:
    """At any moment of a pull: it succeeds, or does when it is repeated."""
    chance = random.Random(seed)
    cut = 0
    for _ in range(kills):
        with pulls.under_way(chance) as pull:
            cut += pull.poll() is None
            pulls.plugin.kill()
            _, said = pull.communicate(timeout=PATIENCE_S)
        if pull.returncode:
            assert re.search(rb"unavailable|Unavailable|reading from server|connection", said), said
        pulls.containerd.await_snapshotter(NAME)
        pulls.check()
    assert cut
    pulls.check_descriptors(kills)
