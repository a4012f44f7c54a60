"""What containerd promises of every snapshotter, asked of lazyfsd at its socket: the cases of containerd's own suite, in their order.

Source: containerd, core/snapshots/testsuite (testsuite.go, issues.go). Where a case is about what files look like, it is tried twice:
once on a layer that was unpacked, and once where the lowest layer is lazy, and lazyfsd mounts the overlay.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from pathlib import Path

import grpc
import pytest

from tests.snapshot_lab import Lab
from tests.snapshot_trees import PAGE, all_of, assert_same, directory, file, gone, linked, mounted, owner, renamed
from tests.snapshots_client import Mount, SnapshotsClient, refused

pytestmark = [pytest.mark.fuse, pytest.mark.root]

SAME_SECOND = 1_700_000_000
on_both = pytest.mark.parametrize("lazy", [False, True], ids=["unpacked", "lazy"])


def test_basic(lab: Lab) -> None:
    """A layer is prepared, committed, stacked on, viewed and removed; a key is gone when it is committed."""
    first = all_of(file("foo", b"foo\n", 0o777), directory("a"), directory("a/b"), directory("a/b/c"))
    second = all_of(file("bar", b"bar\n", 0o777), file("foo", b"bar\n", 0o777), gone("a/b"))
    flat = lab.folder / "flat"
    flat.mkdir(mode=0o755)
    base, active, top = lab.layer("base", first), lab.key("active"), lab.key("top")
    with refused(grpc.StatusCode.NOT_FOUND):
        lab.client.stat(lab.key("base-active"))
    first(flat)
    with mounted(lab.client.prepare(active, base), lab.folder) as root:
        assert_same(flat, root)
        second(root)
    found = lab.client.stat(active)
    assert (found.parent, found.kind) == (base, "active")
    lab.client.commit(top, active)
    with refused(grpc.StatusCode.NOT_FOUND):
        lab.client.stat(active)
    infos = [lab.client.stat(key) for key in (base, top)]
    assert [(info.key, info.parent, info.kind) for info in infos] == [(base, "", "committed"), (top, base, "committed")]
    assert list(lab.client.walk()) == infos
    second(flat)
    lab.check(top, flat)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot be removed"):
        lab.client.remove(base)
    lab.client.remove(top)
    lab.client.remove(base)
    assert not lab.names()


def test_stat_of_an_active_one(lab: Lab) -> None:
    """What is mounted and written to is active, and stands on nothing."""
    key = lab.key("active")
    with mounted(lab.client.prepare(key), lab.folder) as root:
        file("foo", b"foo\n")(root)
        found = lab.client.stat(key)
    assert (found.key, found.parent, found.kind) == (key, "", "active")


def test_stat_of_a_committed_one(lab: Lab) -> None:
    """Who still has it mounted does not keep a snapshot from being committed."""
    active, key = lab.key("active"), lab.key("committed")
    with mounted(lab.client.prepare(active), lab.folder) as root:
        file("foo", b"foo\n")(root)
        lab.client.commit(key, active)
    found = lab.client.stat(key)
    assert (found.key, found.parent, found.kind) == (key, "", "committed")


def test_parents_have_parents(lab: Lab) -> None:
    """Each snapshot names the one right below it."""
    base = lab.layer("base", file("foo", b"foo\n"))
    top = lab.layer("top", file("foo", b"foo bar\n"), parent=base)
    assert lab.client.stat(top).parent == base
    assert lab.client.stat(lab.client.stat(top).parent).parent == ""


def test_a_key_is_taken_once(lab: Lab) -> None:
    """No second snapshot of one key, whichever kinds the two are."""
    base = lab.layer("base")
    calls = (lab.client.prepare, lab.client.view)
    for number, (make, again) in enumerate(itertools.product(calls, calls)):
        key = lab.key(f"twice-{number}")
        make(key, base)
        before = lab.client.stat(key)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            again(key, base)
        assert lab.client.stat(key) == before


def test_update(lab: Lab) -> None:
    """Labels can be changed, all or some, of every kind of snapshot; nothing else can."""
    before = time.time_ns()
    kinds = some_of_each(lab)
    after = time.time_ns()
    for key, (kind, parent) in kinds.items():
        found = lab.client.stat(key)
        assert (found.key, found.kind, found.parent) == (key, kind, parent)
        assert before <= found.created_ns == found.updated_ns <= after

        start = time.time_ns()
        labels = {"l1": "v1", "l2": "v2", "l3": "v3"}
        updated = lab.client.update(key, labels, parent="doesnotexist")
        assert start <= updated.updated_ns <= time.time_ns()
        assert updated == found._replace(labels=labels, updated_ns=updated.updated_ns)

        updated = lab.client.update(key, {"l1": "updated", "l4": "v4"}, "labels.l1", "labels.l2")
        assert updated.labels == {"l1": "updated", "l3": "v3"}
        updated = lab.client.update(key, {"l4": "v4"}, "labels")
        assert updated.labels == {"l4": "v4"} == lab.client.stat(key).labels

        with refused(grpc.StatusCode.INVALID_ARGUMENT, "only labels"):
            lab.client.update(key, {"l5": "v5"}, "labels.l5", "parent", parent="doesnotexist")
        assert lab.client.stat(key) == updated


def some_of_each(lab: Lab) -> dict[str, tuple[str, str]]:
    """Snapshots of every kind, and what each is: kind, parent."""
    base = lab.layer("c1")
    top = lab.layer("c2", parent=base)
    on_top, on_nothing, view_of_top, view_of_nothing = (lab.key(name) for name in ("a1", "a2", "v1", "v2"))
    lab.client.prepare(on_top, top)
    lab.client.prepare(on_nothing)
    lab.client.view(view_of_top, top)
    lab.client.view(view_of_nothing)
    return {
        base: ("committed", ""),
        top: ("committed", base),
        on_top: ("active", top),
        on_nothing: ("active", ""),
        view_of_top: ("view", top),
        view_of_nothing: ("view", ""),
    }


def test_a_removed_key_is_free(lab: Lab) -> None:
    """It may be another snapshot's of another kind, and that of a committed one a committed one's."""
    base, key = lab.layer("base", file("old")), lab.key("again")
    lab.client.prepare(key, base)
    lab.client.remove(key)
    lab.client.view(key, base)
    lab.client.remove(key)
    lab.client.prepare(key)
    lab.client.remove(base)
    lab.client.commit(base, key)
    with mounted(lab.client.view(lab.key("view"), base), lab.folder) as root:
        assert not os.listdir(root), "what the removed one held is not there"


def test_walk(lab: Lab) -> None:
    """Filters by name, parent, kind and label let through what they say."""
    label = {"gc": "walk"}
    lab.client.prepare(lab.key("a-np"), labels=label)
    p = lab.layer("p", labels=label)
    lab.client.prepare(lab.key("a"), p, label)
    lab.client.view(lab.key("v"), p, label)
    labelled = lab.layer("p-wl", labels={**label, "l": "1"})
    lab.client.prepare(lab.key("a-wl"), labelled, {**label, "l": "2"})
    lab.client.view(lab.key("v-wl"), labelled, {**label, "l": "3"})
    lab.client.prepare(lab.key("a-np-wl"), labels={**label, "l": "2"})
    lab.client.prepare(lab.key("other"))

    everything = {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}
    assert lab.names() == {*everything, "other"}
    assert lab.names("labels.gc==walk") == everything
    assert lab.names('labels."gc"==walk,kind==active') == {"a-np", "a", "a-wl", "a-np-wl"}
    assert lab.names("kind==view,labels.gc==walk") == {"v", "v-wl"}
    assert lab.names("kind==committed") == {"p", "p-wl"}
    assert lab.names(f'name=="{p}"', f'name=="{lab.key("a-np-wl")}"') == {"p", "a-np-wl"}
    assert lab.names(f'name=="{lab.key("a-wl")}",labels.l') == {"a-wl"}
    assert lab.names(f'parent=="{p}"') == {"a", "v"}
    assert lab.names('parent!="",labels.gc==walk') == {"a", "v", "a-wl", "v-wl"}
    assert lab.names("labels.l") == {"p-wl", "a-wl", "v-wl", "a-np-wl"}
    assert lab.names("labels.l==2") == {"a-wl", "a-np-wl"}


@on_both
def test_a_file_changes_and_keeps_size_and_time(lab: Lab, lazy: bool) -> None:
    """What tells two versions of a file apart is not its size and its time."""

    def same_time(root: os.PathLike[str]) -> None:
        for name in ("etc/hosts", "etc/profile"):
            os.utime(os.path.join(root, name), (SAME_SECOND, SAME_SECOND))

    lab.check_chain(
        all_of(
            directory("etc", 0o700), file("etc/hosts", b"mydomain 10.0.0.1"), file("etc/profile", b"PATH=/usr/bin"), same_time
        ),
        all_of(
            file("etc/hosts", b"mydomain 10.0.0.2"), file("etc/profile", b"PATH=/usr/bin", 0o666), same_time,
            directory("root", 0o700), file("root/.bashrc", b"PATH=/usr/sbin:/usr/bin"),
        ),
        lazy=lazy,
    )  # fmt: skip


@on_both
def test_a_directory_is_made_again(lab: Lab, lazy: bool) -> None:
    """What was in the old one of that name stays hidden, under further layers as well."""
    lab.check_chain(
        all_of(directory("lib", 0o700), file("lib/hidden")),
        all_of(gone("lib"), directory("lib", 0o700), file("lib/not-hidden")),
        file("lib/newfile"),
        lazy=lazy,
    )


@on_both
def test_chown(lab: Lab, lazy: bool) -> None:
    """Directories and files of a lower layer get another owner."""
    names = ("opt", "opt/a", "opt/a/b", "opt/a/b/file.txt")
    lab.check_chain(
        all_of(*(directory(name, 0o700) for name in names[:3]), file(names[3], b"hello")),
        all_of(*(owner(name, 1) for name in names)),
        lazy=lazy,
    )


@on_both
def test_owners_of_directories_are_committed(lab: Lab, lazy: bool) -> None:
    """Those that were changed, those that stayed, and those that were made anew."""
    lab.check_chain(
        all_of(
            *(directory(f"dir{number}", 0o700) for number in range(1, 6)),
            *(file(f"dir{number}/f1", b"...") for number in (4, 5)),
            *(owner(name, 1) for name in ("dir1", "dir2", "dir3", "dir5", "dir5/f1")),
        ),
        all_of(owner("dir2", 0), gone("dir3"), owner("dir4", 1), owner("dir4/f1", 1)),
        all_of(directory("dir3", 0o700), owner("dir3", 1), gone("dir5"), directory("dir5", 0o700), owner("dir5", 1)),
        lazy=lazy,
    )


def test_what_others_stand_on_stays(lab: Lab) -> None:
    """A snapshot goes after its children."""
    base = lab.layer("base")
    middle = lab.layer("middle", parent=base)
    top = lab.key("top")
    lab.client.prepare(top, middle)
    for key in (base, middle):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "is its child"):
            lab.client.remove(key)
    for key in (top, middle, base):
        lab.client.remove(key)
    assert not lab.names()


@on_both
def test_deleted_files_stay_deleted(lab: Lab, lazy: bool) -> None:
    """In a child's child that changes nothing, too."""
    lab.check_chain(all_of(file("foo", b"foo\n", 0o777), file("foobar", b"foobar\n", 0o777)), gone("foobar"), all_of(), lazy=lazy)


@on_both
def test_files_move_out_of_a_lower_layer(lab: Lab, lazy: bool) -> None:
    """By a copy and by a link: what is at the new place is whole, and the old place is empty."""
    lab.check_chain(
        all_of(directory("dir1", 0o700), file("dir1/f1", b"Hello"), directory("dir2", 0o700), file("dir2/f2", b"...")),
        all_of(directory("dir3", 0o700), file("dir3/f1", b"Hello"), gone("dir1"), linked("dir2/f2", "dir3/f2"), gone("dir2/f2")),
        lazy=lazy,
    )


@on_both
def test_a_view_is_read_only(lab: Lab, lazy: bool) -> None:
    """Nothing can be written into a view: of one layer, of several, of none."""
    tree = lab.folder / "tree"
    tree.mkdir(mode=0o755)
    file("file", b"old")(tree)
    with lab.lazy_layer(tree) as lazy_base:
        base = lazy_base if lazy else lab.layer("base", file("file", b"old"))
        for number, parent in enumerate((base, lab.layer("top", file("other"), parent=base), "")):
            with mounted(lab.client.view(lab.key(str(number)), parent), lab.folder) as root:
                for name in ("testfile", "file"):
                    with pytest.raises(OSError, match="Read-only") as caught:
                        file(name, b"new")(root)
                    assert caught.value.errno == errno.EROFS


def test_stat_while_walking(lab: Lab) -> None:
    """Snapshots are looked at, made and removed while a list of them comes in, page by page; no lock is held for it."""
    keys = [lab.key(f"{number:03}") for number in range(250)]
    for key in keys:
        lab.client.prepare(key)
    seen: list[str] = []
    for count, page in enumerate(lab.client.pages()):
        if not count:
            lab.client.remove(keys[-1])
            lab.client.prepare(lab.key("new"))
            lab.client.cleanup()
        for info in page:
            seen.append(info.key)
            assert info.key == keys[-1] or lab.client.stat(info.key) == info
    assert count > 1, "one page tells nothing"
    assert seen[:249] == keys[:249], "what stays is seen once"
    assert set(seen[249:]) <= {keys[-1], lab.key("new")}


def test_close_twice(lab: Lab, socket_client: SnapshotsClient) -> None:
    """A client that closes its connection, and closes it again, leaves the snapshots and the other clients alone."""
    key = lab.layer("base")
    assert socket_client.stat(key).key == key
    socket_client.close()
    socket_client.close()
    assert lab.client.stat(key).key == key
    lab.client.remove(key)


def test_a_new_root_may_be_entered(lab: Lab) -> None:
    """Its mode is 0755 and its owner root, whatever the daemon's umask."""
    with mounted(lab.client.prepare(lab.key("active")), lab.folder) as root:
        found = root.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)


@on_both
def test_rename(lab: Lab, lazy: bool) -> None:
    """Files of a lower layer are renamed and replaced by a rename."""
    lab.check_chain(
        all_of(directory("files", 0o700), file("files/f1", b"was here first!"), file("files/f2", b"nothing interesting")),
        all_of(
            file("files/f1-overwrite", b"new content 1"),
            renamed("files/f1-overwrite", "files/f1"),
            renamed("files/f2", "files/f3"),
        ),
        lazy=lazy,
    )


def test_a_lazy_directory_is_renamed(lab: Lab) -> None:
    """Where lazyfsd mounts the overlay, this works, which containerd's own cannot do: what is in the directory comes along."""
    lab.check_chain(
        all_of(directory("dir1", 0o700), file("dir1/f1", b"was here first!")),
        renamed("dir1", "dir2"),
        file("dir2/f2", b"new"),
        lazy=True,
    )


@on_both
def test_128_layers(lab: Lab, lazy: bool) -> None:
    """Each shows what it should before and after its change, and so does a view of all: options longer than a page are none's trouble."""
    flat = lab.folder / "flat"
    flat.mkdir(mode=0o755)
    first = all_of(
        file("bottom", b"way at the bottom\n", 0o777), file("overwriteme", b"FIRST!\n", 0o777), directory("addhere"),
        directory("onlyme"), file("onlyme/bottom", b"bye!\n", 0o777),
    )  # fmt: skip
    first(flat)
    with lab.lazy_layer(flat) as lazy_base:
        parent = lazy_base if lazy else lab.layer("0", first)
        for number in range(1, 128):
            change = all_of(
                file("overwriteme", b"%d WAS HERE!\n" % number, 0o777), file(f"addhere/file-{number}", b"same\n", 0o755),
                gone("onlyme"), directory("onlyme"), file(f"onlyme/file-{number}", b"only me!\n", 0o777),
            )  # fmt: skip
            active = lab.key(f"{number}-active")
            mounts = lab.client.prepare(active, parent)
            with mounted(mounts, lab.folder) as root:
                assert_same(flat, root)
                for tree in (flat, root):
                    change(tree)
                assert_same(flat, root)
            parent = lab.key(str(number))
            lab.client.commit(parent, active)
        lab.check(parent, flat)
        if lazy:
            assert mounts == [Mount("bind", f"{lab.snapshots / Path(mounts[0].source).parent.name / 'root'}", ("rw", "rbind"))]
        else:
            assert sum(map(len, mounts[0].options)) > PAGE
