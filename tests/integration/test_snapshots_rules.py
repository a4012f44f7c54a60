"""What containerd's own suite does not try: odd keys and labels, wrong parents and kinds, what is asked twice or at once.

The statuses are those of containerd's own snapshotters (core/snapshots/storage/bolt.go), by which its unpacker and its garbage
collector decide what to do next.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from lazyfs.containerd.roots import INDEX_OFF
from lazyfs.kernel.mountinfo import mounts as kernel_mounts
from lazyfs.snapshots.labels import REMOTE, REMOTE_VALUE, TARGET
from tests.lazyfsd import moments
from tests.plugin import Plugin
from tests.snapshot_lab import Lab
from tests.snapshot_trees import directory, file, gone, mounted
from tests.snapshots_client import Mount, Usage, refused

pytestmark = [pytest.mark.fuse, pytest.mark.root]

Status = grpc.StatusCode
BLOCK = 4096

ODD = {
    "unicode": "ключ/钥匙/🗝/e\u0301",
    "blanks": "  a key\twith blanks  ",
    "lines": "two\nlines\r\nand a null\0",
    "path": "../../../../etc/passwd",
    "options": "a:b,c=d\\e::'\"%s%n",
    "4 KB": "k" * BLOCK,
    "4 KB of two bytes": "ü" * (BLOCK // 2),
}


@pytest.fixture
def tree(lab: Lab) -> Path:
    """What a lazy layer may hold."""
    root = lab.folder / "tree"
    root.mkdir()
    root.chmod(0o751)
    os.chown(root, 7, 8)
    file("file", b"lazy")(root)
    directory("etc")(root)
    return root


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_odd_keys(lab: Lab, tree: Path, name: str) -> None:
    """A key is any text: it is told back as it came, names one snapshot, and no path or option is ever made of it."""
    key = lab.key(name)
    with lab.lazy_layer(tree) as lazy:
        outside = set(lab.snapshots.parent.iterdir())
        for parent in ("", lazy):
            active, view = f"{key}/active", f"{key}/view"
            with mounted(lab.client.prepare(active, parent), lab.folder) as root:
                file("new", b"new")(root)
            for twice in (lab.client.prepare, lab.client.view):
                with refused(Status.ALREADY_EXISTS):
                    twice(active, parent)
            with refused(Status.ALREADY_EXISTS):
                lab.client.commit(active, active)
            assert lab.client.usage(active).inodes == 2
            lab.client.commit(key, active, {"label": "x"})
            assert lab.client.update(key, {"label": name[:1000]}, "labels.label").labels == {"label": name[:1000]}
            assert lab.client.stat(key).key == key
            with mounted(lab.client.view(view, key), lab.folder) as root:
                assert (root / "new").read_bytes() == b"new"
            assert [info.key for info in lab.client.walk() if info.parent == key] == [view]
            with refused(Status.FAILED_PRECONDITION):
                lab.client.remove(key)
            for each in (view, key):
                lab.client.remove(each)
            with refused(Status.NOT_FOUND):
                lab.client.stat(key)
        assert set(lab.snapshots.parent.iterdir()) == outside


def test_no_key(lab: Lab) -> None:
    """A snapshot has a name, active, view or committed."""
    lab.client.prepare(lab.key("active"))
    for call in (lab.client.prepare, lab.client.view):
        with refused(Status.INVALID_ARGUMENT, "needs a key"):
            call("")
    with refused(Status.INVALID_ARGUMENT, "needs a key"):
        lab.client.commit("", lab.key("active"))
    for ask in (lab.client.stat, lab.client.mounts, lab.client.remove, lab.client.usage):
        with refused(Status.NOT_FOUND):
            ask("")
    assert lab.names() == {"active"}


def test_what_is_not_there(lab: Lab) -> None:
    """Whatever is asked of a key that nobody has, the status says that; a parent that is not there, too."""
    key = lab.key("none")
    for ask in (lab.client.stat, lab.client.mounts, lab.client.remove, lab.client.usage):
        with refused(Status.NOT_FOUND):
            ask(key)
    with refused(Status.NOT_FOUND):
        lab.client.update(key, {})
    with refused(Status.NOT_FOUND):
        lab.client.commit(lab.key("name"), key)
    for make in (lab.client.prepare, lab.client.view):
        with refused(Status.NOT_FOUND, "parent"):
            make(lab.key("child"), key)
    assert not lab.names()


def test_parents_of_the_wrong_kind(lab: Lab) -> None:
    """Nothing stands on what may still change: on an active snapshot, or on a view."""
    base, active, view = lab.layer("base"), lab.key("active"), lab.key("view")
    lab.client.prepare(active, base)
    lab.client.view(view, base)
    for parent in (active, view):
        for make in (lab.client.prepare, lab.client.view):
            with refused(Status.INVALID_ARGUMENT, "not committed"):
                make(lab.key("child"), parent)
    assert lab.names() == {"base", "active", "view"}


def test_what_cannot_be_committed(lab: Lab, tree: Path) -> None:
    """A view, and what is committed already, unpacked or lazy; and nothing under a name that is taken."""
    base, view, active = lab.layer("base"), lab.key("view"), lab.key("active")
    lab.client.view(view, base)
    lab.client.prepare(active, base)
    with lab.lazy_layer(tree) as lazy:
        for key in (view, base, lazy):
            with refused(Status.FAILED_PRECONDITION, "only an active one"):
                lab.client.commit(lab.key("name"), key)
        for taken in (view, base, lazy, active):
            with refused(Status.ALREADY_EXISTS):
                lab.client.commit(taken, active)
        for key, kind in ((view, "view"), (base, "committed"), (lazy, "committed"), (active, "active")):
            assert lab.client.stat(key).kind == kind


def test_mounts_are_containerds_own(lab: Lab) -> None:
    """Without a lazy layer, what is to be mounted is word for word what containerd's overlayfs says; Mounts says it again."""
    base = lab.layer("base", file("a"))
    top = lab.layer("top", file("b"), parent=base)
    lower = [str(lab.snapshots / str(number) / "fs") for number in sorted(int(name) for name in os.listdir(lab.snapshots))[-2:]]
    index = ("index=off",) if INDEX_OFF else ()

    def said(make: Callable[[str, str], list[Mount]], name: str, parent: str) -> tuple[Mount, Path]:
        key = lab.key(name)
        [mount] = make(key, parent)
        assert lab.client.mounts(key) == [mount]
        return mount, lab.snapshots / str(max(int(number) for number in os.listdir(lab.snapshots)))

    mount, own = said(lab.client.prepare, "a0", "")
    assert mount == Mount("bind", f"{own}/fs", ("rw", "rbind"))
    mount, own = said(lab.client.view, "v0", "")
    assert mount == Mount("bind", f"{own}/fs", ("ro", "rbind"))
    mount, own = said(lab.client.prepare, "a1", base)
    assert mount == Mount("overlay", "overlay", (*index, f"workdir={own}/work", f"upperdir={own}/fs", f"lowerdir={lower[0]}"))
    mount, own = said(lab.client.view, "v1", base)
    assert mount == Mount("bind", lower[0], ("ro", "rbind"))
    mount, own = said(lab.client.prepare, "a2", top)
    both = f"lowerdir={lower[1]}:{lower[0]}"
    assert mount == Mount("overlay", "overlay", (*index, f"workdir={own}/work", f"upperdir={own}/fs", both))
    mount, own = said(lab.client.view, "v2", top)
    assert mount == Mount("overlay", "overlay", (*index, both))
    for key in (base, top):
        with refused(Status.FAILED_PRECONDITION, "is committed"):
            lab.client.mounts(key)


def test_lazy_roots_are_binds(lab: Lab, tree: Path) -> None:
    """With a lazy layer it is one bind of what lazyfsd has mounted, with the root's own owner and mode; Mounts mounts nothing more."""
    with lab.lazy_layer(tree) as lazy:
        top = lab.layer("top", file("new"), parent=lazy)
        for make, parent, mode in ((lab.client.prepare, lazy, "rw"), (lab.client.view, lazy, "ro"), (lab.client.view, top, "ro")):
            key = lab.key("root")
            [mount] = make(key, parent)
            assert lab.client.mounts(key) == [mount]
            root = Path(mount.source)
            assert mount == Mount("bind", str(root), (mode, "rbind")) and root.parent.parent == lab.snapshots
            assert [there.kind for there in kernel_mounts() if there.path == root] == ["overlay"]
            found = root.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o751, 7, 8)
            assert (root / "file").read_bytes() == b"lazy"
            lab.client.remove(key)
        for key in (lazy, top):
            with refused(Status.FAILED_PRECONDITION, "is committed"):
                lab.client.mounts(key)


def test_labels_have_a_size(lab: Lab, tree: Path) -> None:
    """A label of 4096 bytes, key and value, is kept; one byte more is refused wherever labels come in, and changes nothing."""
    fits, too_long = {"key": "v" * (BLOCK - 3)}, {"key": "v" * (BLOCK - 2), "other": "x"}
    two_bytes = {"key": "ü" * (BLOCK // 2 - 1)}
    active, base = lab.key("active"), lab.layer("base", labels=fits)
    lab.client.prepare(active, base, fits)
    before = list(lab.client.walk())
    assert [info.labels for info in before] == [fits, fits]
    for labels in (too_long, two_bytes):
        for make in (lab.client.prepare, lab.client.view):
            with refused(Status.INVALID_ARGUMENT, "4096"):
                make(lab.key("new"), base, labels)
        with refused(Status.INVALID_ARGUMENT, "4096"):
            lab.client.commit(lab.key("new"), active, labels)
        for paths in ((), ("labels",), ("labels.other", "labels.key")):
            with refused(Status.INVALID_ARGUMENT, "4096"):
                lab.client.update(active, labels, *paths)
    assert list(lab.client.walk()) == before
    with lab.lazy_layer(tree) as lazy:
        labels = lab.client.stat(lazy).labels
        lab.client.remove(lazy)
        with refused(Status.INVALID_ARGUMENT, "4096"):
            lab.client.prepare(lab.key("extract-2"), labels={**labels, **too_long})
    assert list(lab.client.walk()) == before


def test_unknown_labels_are_kept(lab: Lab, tree: Path) -> None:
    """What nobody here understands is told back, of every kind of snapshot; a commit takes over none; an empty one is none."""
    odd = {"unknown": "1", "containerd.io/snapshot/new.thing": '"=,\n\0', "ключ": "🗝", "a.b.c": "d", "empty": ""}
    sent = {key: value for key, value in odd.items() if value}
    base = lab.layer("base", labels=odd)
    assert lab.client.stat(base).labels == sent
    for make in (lab.client.prepare, lab.client.view):
        key = lab.key(make.__name__)
        make(key, base, odd)
        assert lab.client.stat(key).labels == sent
        assert lab.client.update(key, {"a.b.c": "e"}, "labels.a.b.c", "labels.none").labels == {**sent, "a.b.c": "e"}
        assert lab.client.update(key, {}).labels == {}
    lab.client.commit(lab.key("plain"), lab.key("prepare"))
    assert lab.client.stat(lab.key("plain")).labels == {}
    with lab.lazy_layer(tree) as lazy:
        asked = {**lab.client.stat(lazy).labels, **odd}
        lab.client.remove(lazy)
        with refused(Status.ALREADY_EXISTS):
            lab.client.prepare(lab.key("extract-2"), labels=asked)
        found = lab.client.stat(lazy).labels
        assert found == {key: value for key, value in asked.items() if value} and found[REMOTE] == REMOTE_VALUE


def test_a_lazy_layer_is_there_once(lab: Lab, tree: Path) -> None:
    """Asked for again, and by many at once, it is one snapshot, on the parent that was named; on another parent it is another one."""
    base = lab.layer("base")
    with lab.lazy_layer(tree) as lazy:
        labels = lab.client.stat(lazy).labels
        lab.client.remove(lazy)

        def ask(number: int) -> None:
            with refused(Status.ALREADY_EXISTS, labels[TARGET]):
                lab.client.prepare(lab.key(f"extract-{number}"), base if number % 2 else "", labels)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        found = list(lab.client.walk(f'labels."{TARGET}"=="{labels[TARGET]}"'))
        assert sorted(info.parent for info in found) == sorted(["", base])
        assert len({info.key for info in found}) == 2 and {info.kind for info in found} == {"committed"}
        assert lab.names(f'parent=="{base}"') | {"base"} == {"base", *(info.key for info in found if info.parent)}
        # With a target and a parent that cannot be one, it is as with any other snapshot.
        with refused(Status.NOT_FOUND, "parent"):
            lab.client.prepare(lab.key("extract"), lab.key("none"), labels)
        lab.client.prepare(lab.key("active"))
        with refused(Status.INVALID_ARGUMENT, "not committed"):
            lab.client.prepare(lab.key("extract"), lab.key("active"), labels)


def test_filters(lab: Lab, tree: Path) -> None:
    """containerd finds a lazy layer by target and parent, whatever characters these have; what is not a filter is refused."""
    base = lab.layer('ba"se,\\')
    with lab.lazy_layer(tree) as lazy:
        labels = lab.client.stat(lazy).labels
        with refused(Status.ALREADY_EXISTS):
            lab.client.prepare(lab.key("extract-2"), base, labels)
        quoted = base.replace("\\", "\\\\").replace('"', '\\"')
        target = f'labels."{TARGET}"=="{labels[TARGET]}"'
        [found] = lab.client.walk(f'{target},parent=="{quoted}"')
        assert found.parent == base
        assert [info.key for info in lab.client.walk(f'{target},parent==""')] == [lazy]
        assert len(list(lab.client.walk(f'{target},parent==""', f'name=="{quoted}"'))) == 2
        assert len(list(lab.client.walk(f'labels."{REMOTE}"'))) == 2
    for wrong in ("name=x", 'name=="x', "labels.x~=/(/", ",", "name==x,"):
        with refused(Status.INVALID_ARGUMENT, "filter"):
            list(lab.client.walk("kind==active", wrong))


def test_usage(lab: Lab, tree: Path) -> None:
    """Active: what is in the upper directory now. Committed: what was there then. A view: nothing of its own."""
    active, view, base = lab.key("active"), lab.key("view"), lab.key("base")
    with mounted(lab.client.prepare(active), lab.folder) as root:
        assert lab.client.usage(active) == Usage(1, BLOCK)
        directory("d")(root)
        file("d/f", b"x" * 3 * BLOCK)(root)
        os.link(root / "d/f", root / "again")
        file("sparse")(root)
        os.truncate(root / "sparse", 1 << 30)
        assert lab.client.usage(active) == Usage(4, 5 * BLOCK)
    lab.client.commit(base, active)
    assert lab.client.usage(base) == Usage(4, 5 * BLOCK)
    lab.client.view(view, base)
    assert lab.client.usage(view) == Usage(0, 0)
    with mounted(lab.client.prepare(active, base), lab.folder) as root:
        gone("d")(root)
        assert lab.client.usage(active) == Usage(2, BLOCK), "a whiteout is an inode"
    with lab.lazy_layer(tree) as lazy:
        lab.client.prepare(lab.key("on lazy"), lazy)
        assert lab.client.usage(lab.key("on lazy")) == Usage(1, BLOCK)
        lab.client.view(lab.key("view of lazy"), lazy)
        assert lab.client.usage(lab.key("view of lazy")) == Usage(0, 0)


def test_many_at_once(lab: Lab) -> None:
    """Of calls for one key one succeeds; calls for different ones all do, while the same snapshots are listed and cleaned up around."""
    base, together, refusals = lab.layer("base"), threading.Barrier(8), set[grpc.StatusCode]()

    def make(number: int) -> int:
        together.wait()
        won = 0
        for turn in range(6):
            lab.client.prepare(lab.key(f"own {number} {turn}"), base)
            try:
                lab.client.prepare(lab.key(f"shared {turn}"), base)
                won += 1
            except grpc.RpcError as error:
                refusals.add(error.code())
            lab.client.cleanup()
            lab.client.remove(lab.key(f"own {number} {turn}"))
            assert base in {info.key for info in lab.client.walk()}
        return won

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(make, range(8))) == 6
    assert refusals == {Status.ALREADY_EXISTS}
    assert lab.names() == {"base", *(f"shared {turn}" for turn in range(6))}
    with mounted(lab.client.mounts(lab.key("shared 0")), lab.folder) as root:
        file("writable")(root)
    lab.await_directories(7)


def test_cleanup(lab: Lab) -> None:
    """A directory without a snapshot goes, whatever is in it; what belongs to one stays."""
    key = lab.layer("base", file("kept", b"kept"))
    orphan = lab.snapshots / "999999"
    (orphan / "fs" / "deep" / "er").mkdir(parents=True)
    (orphan / "fs" / "link").symlink_to(lab.snapshots)
    (orphan / "root").mkdir()
    lab.client.cleanup()
    for _ in moments():
        if not orphan.exists():
            break
    assert not orphan.exists()
    with mounted(lab.client.view(lab.key("view"), key), lab.folder) as root:
        assert (root / "kept").read_bytes() == b"kept"


@pytest.mark.parametrize("lazy", [False, True])
def test_lost_directories_are_made_again(lab: Lab, tree: Path, lazy: bool) -> None:
    """As a power cut may leave a snapshot: its row is on the disk, and nothing else. It begins anew, with the owner of what is below."""
    with lab.lazy_layer(tree) as layer:
        parent = layer if lazy else lab.layer("base", directory("etc"))
        key = lab.key("active")
        lab.client.prepare(key, parent)
        lost = lab.snapshots / max(os.listdir(lab.snapshots), key=int)
        subprocess.run(["umount", "--quiet", lost / "root"], check=False)
        shutil.rmtree(lost)
        with mounted(lab.client.mounts(key), lab.folder) as root:
            (root / "written").write_bytes(b"anew")
            assert (root / "etc").is_dir()
            assert (root.stat().st_uid, root.stat().st_gid) == ((7, 8) if lazy else (0, 0))
        lab.client.remove(key)


def test_nothing_is_left(snapshotter: Plugin, lab: Lab, tree: Path) -> None:
    """When all snapshots are removed, no directory, no root and no layer is left; what somebody had still mounted then goes with the
    next one that is removed."""
    with lab.lazy_layer(tree) as lazy:
        active, view = lab.key("active"), lab.key("view")
        with mounted(lab.client.prepare(active, lazy), lab.folder) as root, mounted(lab.client.view(view, lazy), lab.folder):
            for key in (active, view, lazy):
                lab.client.remove(key)
                lab.client.cleanup()
            assert (root / "etc").is_dir(), "who has it mounted keeps it"
            lab.await_directories(0)
    lab.client.prepare(active)
    lab.client.remove(active)
    assert not list(lab.client.walk())
    for _ in moments():
        if len(snapshotter.left()) == 1:
            break
    assert snapshotter.left() == [str(snapshotter.store / "gate")]
