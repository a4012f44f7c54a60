"""Where snapshots are made and looked at: a client of the snapshotter, a folder to mount in, and keys that no other test has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from lazyfs.snapshots.labels import TARGET
from tests.lazy_tree import served
from tests.lazyfsd import moments
from tests.snapshot_trees import Change, all_of, assert_same, mounted
from tests.snapshots_client import SnapshotsClient, refused


class Lab:
    """`snapshots` is where the snapshotter keeps the directories of its snapshots."""

    def __init__(self, client: SnapshotsClient, snapshots: Path, folder: Path, name: str) -> None:
        self.client = client
        self.snapshots = snapshots
        self.folder = folder
        self._name = name

    def key(self, name: str) -> str:
        """As containerd would call it: its keys begin with name space and number."""
        return f"test/{self._name}/{name}"

    def names(self, *filters: str) -> set[str]:
        """What `key` was called with, of those that are listed."""
        return {info.key.removeprefix(self.key("")) for info in self.client.walk(*filters)}

    def layer(self, name: str, *changes: Change, parent: str = "", labels: Mapping[str, str] | None = None) -> str:
        """Prepared, changed in its mount, and committed. Its key."""
        active, key = self.key(f"{name}-active"), self.key(name)
        with mounted(self.client.prepare(active, parent), self.folder) as root:
            all_of(*changes)(root)
        self.client.commit(key, active, labels)
        return key

    def await_directories(self, count: int) -> None:
        """Until so many snapshots have one: what was removed goes after the call. AssertionError when it does not."""
        for _ in moments():
            if len(os.listdir(self.snapshots)) == count:
                return
        raise AssertionError(f"{sorted(os.listdir(self.snapshots))} are not {count}")

    @contextmanager
    def lazy_layer(self, tree: Path) -> Iterator[str]:
        """The key of a lazy layer that holds `tree`; inside the block its registry is running."""
        folder = self.folder / f"image-{tree.name}"
        with served(tree, folder) as labels:
            with refused(grpc.StatusCode.ALREADY_EXISTS):
                self.client.prepare(self.key("extract-1"), labels=labels)
            [info] = self.client.walk(f'labels."{TARGET}"=={labels[TARGET]},parent==""')
            yield info.key

    def check(self, key: str, tree: Path) -> None:
        """A view of a committed snapshot shows the same as `tree`."""
        view = f"{key}-view"
        with mounted(self.client.view(view, key), self.folder) as root:
            assert_same(tree, root)
        self.client.remove(view)

    def check_chain(self, *changes: Change, lazy: bool) -> None:
        """A snapshot for each of `changes`, on top of the one before, shows what a directory shows in which they are made."""
        flat = self.folder / "flat"
        flat.mkdir()
        flat.chmod(0o755)
        parent = ""
        with ExitStack() as stack:
            for number, change in enumerate(changes):
                change(flat)
                if lazy and not parent:
                    parent = stack.enter_context(self.lazy_layer(flat))
                else:
                    parent = self.layer(str(number), change, parent=parent)
                self.check(parent, flat)
