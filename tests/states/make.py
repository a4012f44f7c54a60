"""How a state is made, and what is in it."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path
from typing import Final

import grpc

from lazyfs.erofs.image import WRITER_VERSION
from tests.lazy_tree import served
from tests.lazyfsd import moments
from tests.plugin import Plugin
from tests.snapshot_trees import mounted
from tests.snapshots_client import SnapshotsClient, refused

FOLDER: Final = Path(__file__).parent
FILES: Final = {f"etc/file-{number}": b"%d\n" % number * number for number in range(40)}
"""Of the lazy layer."""
ADDED: Final = ("var/added", b"unpacked\n")
UNPACKED: Final = "default/2/unpacked"
_DATABASES: Final = {"index": "index.sqlite", "state": "state.sqlite", "snapshots": "containerd/containerd/snapshots.sqlite"}
_OF_A_PROCESS: Final = {"logs", "gate", "lazyfsd.lock", "lazyfsd.sock", "init", "layers"}


def formats(store: Path) -> str:
    """What the formats of a state directory go by: those of its databases, and of its EROFS images."""
    found = []
    for name, path in _DATABASES.items():
        with sqlite3.connect(store / path) as db:
            found.append(f"{name}-{db.execute('PRAGMA user_version').fetchone()[0]}")
        db.close()
    return "_".join([*found, f"erofs-{WRITER_VERSION}"])


def make(folder: Path) -> Path:
    """Make a state in `folder`, which is on a disk, and keep it. Where it is kept."""
    tree = folder / "tree"
    for name, data in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    plugin = Plugin(folder / "p")
    plugin.start()
    try:
        with served(tree, folder / "image") as labels, SnapshotsClient(plugin.socket) as client:
            with refused(grpc.StatusCode.ALREADY_EXISTS):
                client.prepare("default/1/extract-1 x", labels=labels)
            [lazy] = client.walk()
            with mounted(client.prepare("default/2/active", lazy.key), folder) as root:
                (root / ADDED[0]).parent.mkdir()
                (root / ADDED[0]).write_bytes(ADDED[1])
            client.commit(UNPACKED, "default/2/active")
            for _ in moments():
                if plugin.kept() == len(set(FILES.values())) - 1:  # an empty file is none
                    break
    finally:
        plugin.tidy_up()
    kept = FOLDER / f"{formats(plugin.store)}.tar.gz"
    with tarfile.open(kept, "w:gz") as tar:
        for path in sorted(plugin.store.iterdir()):
            if path.name not in _OF_A_PROCESS:
                tar.add(path, arcname=path.name)
    return kept
