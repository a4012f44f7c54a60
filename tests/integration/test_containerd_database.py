"""A database of snapshots that cannot be used: its containerd is told so, and nobody else has to wait."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lazyfs.snapshots.database import FILE_NAME
from lazyfs.snapshots.schema import SNAPSHOTS
from tests.commands import run
from tests.containerd import Containerd
from tests.lazyfsd import moments
from tests.lying_registry import LyingRegistry
from tests.plugin import CONTAINERD, NAME, Plugin
from tests.sleepers import printed, sleeping
from tests.snapshots_client import SnapshotsClient
from tests.tool_image import TOOL, ToolImage, build_tool

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer]

FILES = {"files/1": b"of the layer below\n"}
TOP = b"of the uppermost layer\n"


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> ToolImage:
    return build_tool(tmp_path_factory.mktemp("tool"), FILES, {"top": TOP})


def damage(path: Path) -> None:
    """Overwrite its second half."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size - file.tell()))


def version(path: Path, number: int) -> None:
    """Make it one of that format."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {number}")


def age(path: Path) -> None:
    """As a later version writes it."""
    version(path, 99)


def spoil(path: Path) -> None:
    """What is in a row, not what sqlite itself knows of."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE snapshot SET labels = '{'")
        db.commit()


@pytest.mark.parametrize(("harm", "said"), [(damage, "is damaged"), (age, "has format 99"), (spoil, "is damaged")])
def test_a_database_that_cannot_be_used(
    harm: Callable[[Path], None], said: str, plugin: Plugin, containerd: Containerd, tool: ToolImage
) -> None:
    """The calls of this containerd are told so, and `lazyfs status`; others are served, and it is once the file is as it was."""
    with LyingRegistry.serving(tool.converted) as registry:
        name = containerd.pull_lazily(f"{registry.image}:v1", NAME)
    path = plugin.store / "containerd" / CONTAINERD / FILE_NAME
    plugin.stop()
    kept = path.read_bytes()
    harm(path)
    plugin.sockets["other"] = plugin.folder / "other.sock"
    plugin.start()
    plugin.wait_until_ready()
    for _ in moments():  # containerd has lost the connection, and tries the socket again after a while
        output = containerd.ctr("snapshots", "--snapshotter", NAME, "prepare", "refused", code=None).stderr.decode()
        if f"{FILE_NAME} {said}" in output:
            break
    with SnapshotsClient(plugin.sockets["other"]) as client:
        client.prepare("works")
        client.remove("works")
    status = {each["name"]: each["trouble"] for each in plugin.status()["containerds"]}
    assert f"{FILE_NAME} {said}" in status[CONTAINERD] and not status["other"]
    assert (
        f"containerd {CONTAINERD} is not served: "
        in run(sys.executable, "-m", "lazyfs", "status", "--store", plugin.store, code=None).stdout.decode()
    )
    assert f"containerd {CONTAINERD} is not served" in plugin.logged()
    plugin.stop()
    path.write_bytes(kept)
    plugin.start()
    containerd.await_snapshotter(NAME)
    assert sum(row.lazy is not None for row in plugin.rows().values()) == 3
    containerd.ctr("images", "rm", "--sync", name)
    plugin.await_empty()


@pytest.mark.parametrize("restart", [Plugin.kill, Plugin.stop], ids=["killed", "restarted"])
def test_a_database_spoilt_under_containers(
    restart: Callable[[Plugin], object], plugin: Plugin, containerd: Containerd, tool: ToolImage
) -> None:
    """What is here goes on, what is missing is an error and no endless wait, until the file is as it was."""
    path = plugin.store / "containerd" / CONTAINERD / FILE_NAME
    with LyingRegistry.serving(tool.converted) as registry:
        name = containerd.pull_lazily(f"{registry.image}:v1", NAME)
        with sleeping(containerd, name, TOOL) as sleeper:
            assert printed(containerd, sleeper, TOOL, "/files/1").encode() == FILES["files/1"]
            version(path, 99)
            plugin.kill()
            plugin.wait_until_ready()
            assert "has format 99" in plugin.status()["containerds"][0]["trouble"]
            assert printed(containerd, sleeper, TOOL, "/files/1").encode() == FILES["files/1"]
            assert printed(containerd, sleeper, TOOL, "/top", code=1) == "/top: EIO\n"
            version(path, SNAPSHOTS.format)
            restart(plugin)
            if restart is Plugin.stop:
                plugin.start()
            containerd.await_snapshotter(NAME)
            if restart is Plugin.kill:  # else its connection has ended
                assert printed(containerd, sleeper, TOOL, "/top").encode() == TOP
            assert containerd.output(name, TOOL, "/top", snapshotter=NAME).encode() == TOP
    containerd.ctr("images", "rm", "--sync", name)
    plugin.await_empty()
