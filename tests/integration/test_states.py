"""An upgrade takes over what an older build wrote: one state directory for each set of formats that there has been (tests/states)."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.plugin import Plugin, plugin_folder
from tests.snapshot_trees import mounted
from tests.snapshots_client import SnapshotsClient, refused
from tests.states.make import ADDED, FILES, FOLDER, UNPACKED, formats

pytestmark = [pytest.mark.fuse, pytest.mark.root]

STATES = sorted(FOLDER.glob("*.tar.gz"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with plugin_folder() as made:
        yield made


@pytest.mark.parametrize("state", STATES, ids=[path.name.removesuffix(".tar.gz") for path in STATES])
def test_an_older_state_is_taken_over(state: Path, folder: Path) -> None:
    """Its snapshots are there and run, without the registry; new ones stand on them; all can be removed."""
    plugin = Plugin(folder)
    plugin.store.mkdir(mode=0o700)
    with tarfile.open(state) as tar:
        tar.extractall(plugin.store)
    plugin.start()
    plugin.wait_until_ready()
    try:
        with SnapshotsClient(plugin.socket) as client:
            kinds = {info.key: info.kind for info in client.walk()}
            assert kinds[UNPACKED] == "committed" and len(kinds) == 2
            with mounted(client.prepare("default/3/run", UNPACKED), folder) as root:
                assert {name: (root / name).read_bytes() for name in FILES} == FILES
                assert (root / ADDED[0]).read_bytes() == ADDED[1]
                (root / "new").write_bytes(b"new")
            client.commit("default/3/new", "default/3/run")
            for key in ("default/3/new", UNPACKED, *(kinds.keys() - {UNPACKED})):
                client.remove(key)
            assert list(client.walk()) == []
    finally:
        plugin.tidy_up()


def test_a_repeated_prepare_that_fails_takes_nothing_away(folder: Path) -> None:
    """What an earlier process has prepared may be in use: with its layers' metadata lost and no registry, it stays as it is."""
    plugin = Plugin(folder)
    plugin.store.mkdir(mode=0o700)
    with tarfile.open(STATES[-1]) as tar:
        tar.extractall(plugin.store)
    plugin.start()
    plugin.wait_until_ready()
    try:
        with SnapshotsClient(plugin.socket) as client, mounted(client.prepare("default/3/run", UNPACKED), folder) as root:
            (root / "new").write_bytes(b"new")
        number = next(row.id for row in plugin.rows().values() if row.kind == "active")
        plugin.stop()
        for lost in ("documents", "erofs"):
            for path in (plugin.store / lost).iterdir():
                path.unlink()
        plugin.start()
        plugin.wait_until_ready()
        with SnapshotsClient(plugin.socket) as client:
            with refused(grpc.StatusCode.UNAVAILABLE):
                client.prepare("default/3/run", UNPACKED)
            assert client.stat("default/3/run").kind == "active"
        kept = plugin.store / "containerd" / "containerd" / "snapshots" / str(number) / "fs" / "new"
        assert kept.read_bytes() == b"new"
    finally:
        plugin.tidy_up()


def test_the_formats_of_today_are_kept(folder: Path) -> None:
    """Who changes a format has kept a state of the old one before: the newest that is kept has the formats that this build writes."""
    plugin = Plugin(folder)
    plugin.start()
    plugin.wait_until_ready()
    try:
        with SnapshotsClient(plugin.socket) as client:
            assert list(client.walk()) == []
    finally:
        plugin.tidy_up()
    assert FOLDER / f"{formats(plugin.store)}.tar.gz" in STATES, "python -m tests.states makes it"
