"""The snapshots of one containerd: its rules, and what survives."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from lazyfs.errors import BadSnapshot, SnapshotBusy, SnapshotExists, SnapshotNotFound
from lazyfs.format.digest import digest_of
from lazyfs.snapshots.database import Snapshots
from lazyfs.snapshots.snapshot import Snapshot
from tests.unit.snapshots.rows import a_layer, committed, keys


def test_what_is_created_is_there(snapshots: Snapshots) -> None:
    """A new snapshot has what it was made with, its own number, and one time for both of its times."""
    before = time.time_ns()
    base = committed(snapshots, "base")
    made = snapshots.create('default/7/key, "odd" \0 ü\n', "base", "active", {"a": "1", "empty": ""}, reason="was not converted")
    assert before <= made.created_ns == made.updated_ns <= time.time_ns()
    assert (made.parent, made.kind, made.labels, made.reason) == ("base", "active", {"a": "1"}, "was not converted")
    assert made.id != base.id
    assert snapshots.stat(made.key) == made
    view = snapshots.create("view", "base", "view", {})
    assert view.kind == "view"
    assert snapshots.ids() == {base.id, made.id, view.id}


def test_what_cannot_be_created(snapshots: Snapshots) -> None:
    """No key, a missing parent, a parent that is not committed, a taken key: each has its own error, and nothing changes."""
    committed(snapshots, "base")
    snapshots.create("active", "base", "active", {})
    snapshots.create("view", "base", "view", {})
    before = list(snapshots.pages())
    with pytest.raises(BadSnapshot, match="needs a key"):
        snapshots.create("", "base", "active", {})
    with pytest.raises(SnapshotNotFound, match="'none'"):
        snapshots.create("new", "none", "active", {})
    for parent in ("active", "view"):
        with pytest.raises(BadSnapshot, match="not committed"):
            snapshots.create("new", parent, "view", {})
    for taken in ("active", "view", "base"):
        with pytest.raises(SnapshotExists):
            snapshots.create(taken, "base", "active", {})
        with pytest.raises(SnapshotExists):
            snapshots.commit_lazy(taken, "base", {}, a_layer())
    with pytest.raises(SnapshotNotFound):
        snapshots.commit_lazy("lazy", "none", {}, a_layer())
    assert list(snapshots.pages()) == before


def test_commit_renames(snapshots: Snapshots) -> None:
    """Committing keeps the number, the parent and the reason, and gives a new name, new labels, a new time, and what it takes."""
    committed(snapshots, "base")
    active = snapshots.create("active", "base", "active", {"old": "1"}, reason="because")
    done = snapshots.commit("active", "name", {"new": "2"}, 5, 12345)
    assert done.created_ns > active.created_ns
    assert done == Snapshot(
        active.id,
        "name",
        "base",
        "committed",
        {"new": "2"},
        done.created_ns,
        done.created_ns,
        5,
        12345,
        None,
        "because",
        was="active",
    )
    with pytest.raises(SnapshotNotFound):
        snapshots.stat("active")
    # The key is free again.
    assert snapshots.create("active", "name", "active", {}).id > active.id


def test_what_cannot_be_committed(snapshots: Snapshots) -> None:
    """A view, a committed one, none at all, a name that is taken (its own as well) or empty: containerd's errors."""
    committed(snapshots, "base")
    snapshots.create("view", "base", "view", {})
    snapshots.create("active", "base", "active", {})
    for key in ("view", "base"):
        with pytest.raises(SnapshotBusy, match="only an active one"):
            snapshots.commit(key, "new", {}, 0, 0)
    with pytest.raises(SnapshotNotFound):
        snapshots.commit("none", "new", {}, 0, 0)
    for name in ("base", "active"):
        with pytest.raises(SnapshotExists):
            snapshots.commit("active", name, {}, 0, 0)
    with pytest.raises(BadSnapshot):
        snapshots.commit("active", "", {}, 0, 0)
    with pytest.raises(BadSnapshot, match="4096"):
        snapshots.commit("active", "new", {"key": "x" * 4094}, 0, 0)
    assert snapshots.stat("active").kind == "active"


def test_commit_onto_a_parent(snapshots: Snapshots) -> None:
    """A snapshot that stands on nothing may get its parent when it is committed; one that stands on something keeps it."""
    committed(snapshots, "base")
    committed(snapshots, "other")
    snapshots.create("a", "", "active", {})
    snapshots.create("b", "base", "active", {})
    with pytest.raises(SnapshotNotFound):
        snapshots.commit("a", "new", {}, 0, 0, parent="none")
    with pytest.raises(SnapshotNotFound):
        snapshots.commit("a", "new", {}, 0, 0, parent="new")
    with pytest.raises(SnapshotBusy):
        snapshots.commit("a", "new", {}, 0, 0, parent="b")
    with pytest.raises(BadSnapshot, match="has the parent"):
        snapshots.commit("b", "new", {}, 0, 0, parent="other")
    assert snapshots.commit("a", "new", {}, 0, 0, parent="base").parent == "base"
    assert snapshots.commit("b", "next", {}, 0, 0, parent="base").parent == "base"


def test_remove(snapshots: Snapshots) -> None:
    """A parent cannot be removed; another snapshot is removed and returned, and its key is free; its number is never reused."""
    base = committed(snapshots, "base")
    top = snapshots.create("top", "base", "view", {})
    with pytest.raises(SnapshotBusy, match="'top' is its child"):
        snapshots.remove("base")
    assert snapshots.remove("top") == top
    with pytest.raises(SnapshotNotFound):
        snapshots.remove("top")
    again = snapshots.create("top", "", "active", {})
    assert again.id > top.id
    assert snapshots.remove("base") == base
    # As in containerd's test suite: what was removed comes back by a commit.
    assert snapshots.commit("top", "base", {}, 0, 0).id == again.id


def test_numbers_outlive_the_process(tmp_path: Path) -> None:
    """The number of the last snapshot is not reused after its removal and a restart."""
    with Snapshots(tmp_path) as snapshots:
        gone = snapshots.create("a", "", "active", {})
        snapshots.remove("a")
    with Snapshots(tmp_path) as snapshots:
        assert snapshots.create("a", "", "active", {}).id > gone.id


def test_update(snapshots: Snapshots) -> None:
    """Labels change by mask, as containerd's test suite has it; nothing else does, and no time but that of the update."""
    made = snapshots.create("a", "", "active", {"old": "1"})
    all_new = snapshots.update("a", {"l1": "v1", "l2": "v2", "l3": "v3", "none": ""}, ())
    assert all_new.labels == {"l1": "v1", "l2": "v2", "l3": "v3"}
    assert all_new.created_ns == made.created_ns < all_new.updated_ns
    assert snapshots.update("a", {"l1": "new", "l4": "v4"}, ["labels.l1", "labels.l2"]).labels == {"l1": "new", "l3": "v3"}
    assert snapshots.update("a", {"a.b/c": "1", "l1": "x"}, ["labels.a.b/c"]).labels == {"l1": "new", "l3": "v3", "a.b/c": "1"}
    replaced = snapshots.update("a", {"l4": "v4"}, ["labels"])
    assert replaced.labels == {"l4": "v4"}
    for path in ("parent", "kind", "label", ""):
        with pytest.raises(BadSnapshot, match="only labels"):
            snapshots.update("a", {"l5": "v5"}, ["labels.l5", path])
    with pytest.raises(SnapshotNotFound):
        snapshots.update("none", {}, ())
    assert snapshots.stat("a") == replaced


def test_labels_are_bounded_in_bytes(snapshots: Snapshots) -> None:
    """A label's key and value have 4096 bytes together, as in containerd; one without a key is none."""
    assert snapshots.create("a", "", "active", {"ü": "x" * 4094}).labels["ü"] == "x" * 4094
    for labels in ({"ü": "x" * 4095}, {"": "x"}):
        with pytest.raises(BadSnapshot, match="label"):
            snapshots.create("b", "", "active", labels)
        with pytest.raises(BadSnapshot, match="label"):
            snapshots.update("a", labels, ())
        with pytest.raises(BadSnapshot, match="label"):
            snapshots.commit_lazy("c", "", labels, a_layer())
    assert keys(snapshots) == {"a"}


def test_ancestry(snapshots: Snapshots) -> None:
    """128 layers come in order, the snapshot itself first and the base last."""
    parent = ""
    for number in range(128):
        parent = snapshots.commit_lazy(f"layer-{number}", parent, {}, a_layer(str(number))).key
    chain = snapshots.ancestry(snapshots.create("top", parent, "active", {}).key)
    assert [each.key for each in chain] == ["top", *(f"layer-{number}" for number in reversed(range(128)))]
    assert chain[1].lazy == a_layer("127")
    with pytest.raises(SnapshotNotFound):
        snapshots.ancestry("none")


def test_filters_choose(snapshots: Snapshots) -> None:
    """The cases of containerd's checkWalk."""
    root = {"containerd.io/gc.root": "check-walk"}

    def commit(name: str, labels: dict[str, str]) -> None:
        snapshots.create(f"{name}-tmp", "", "active", root)
        snapshots.commit(f"{name}-tmp", name, labels, 0, 0)

    commit("p", root)
    commit("p-wl", root | {"l": "1"})
    snapshots.create("a-np", "", "active", root)
    snapshots.create("a", "p", "active", root)
    snapshots.create("v", "p", "view", root)
    snapshots.create("a-wl", "p-wl", "active", root | {"l": "2"})
    snapshots.create("v-wl", "p-wl", "view", root | {"l": "3"})
    snapshots.create("a-np-wl", "", "active", root | {"l": "2"})
    rooted = 'labels."containerd.io/gc.root"==check-walk'
    everything = {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}
    assert keys(snapshots) == keys(snapshots, rooted) == keys(snapshots, "") == everything
    assert keys(snapshots, f"kind==active,{rooted}") == {"a-np", "a", "a-wl", "a-np-wl"}
    assert keys(snapshots, f"kind==view,{rooted}") == {"v", "v-wl"}
    assert keys(snapshots, f"kind==committed,{rooted}") == {"p", "p-wl"}
    assert keys(snapshots, "name==p", "name==a-np-wl") == {"p", "a-np-wl"}
    assert keys(snapshots, "name==a-wl,labels.l") == {"a-wl"}
    assert keys(snapshots, "parent==p") == {"a", "v"}
    assert keys(snapshots, f'parent!="",{rooted}') == {"a", "v", "a-wl", "v-wl"}
    assert keys(snapshots, "labels.l") == {"p-wl", "a-wl", "v-wl", "a-np-wl"}
    assert keys(snapshots, "labels.l==2") == {"a-wl", "a-np-wl"}


def test_a_bad_filter_is_reported_at_once(snapshots: Snapshots) -> None:
    """Before the first page is asked for."""
    with pytest.raises(BadSnapshot, match="at character 5"):
        snapshots.pages(["name=x"])


def test_pages_hold_nothing(snapshots: Snapshots) -> None:
    """Between two pages everything can be called, what stays is seen once, and pages in which nothing matches are skipped."""
    for number in range(350):
        snapshots.create(f"key-{number}", "", "active", {"l": "1"} if number % 300 == 0 else {})
    pages = snapshots.pages()
    seen = [snapshot.key for snapshot in next(pages)]
    snapshots.remove("key-5")
    snapshots.commit("key-349", "name", {}, 0, 0)
    snapshots.remove("key-200")
    assert snapshots.stat("key-6").kind == "active"
    seen += [snapshot.key for page in pages for snapshot in page]
    assert seen == [*(f"key-{number}" for number in range(349) if number != 200), "name"]
    assert [[each.key for each in page] for page in snapshots.pages(["labels.l"])] == [["key-0"], ["key-300"]]


def test_lazy_layers_come_back(tmp_path: Path) -> None:
    """A lazy layer is committed at once, takes nothing, and is what it was after a crash."""
    crashed = Snapshots(tmp_path)
    made = crashed.commit_lazy("lazy", "", {"l": "1"}, a_layer())
    assert (made.kind, made.lazy, made.inodes, made.size) == ("committed", a_layer(), 0, 0)
    with Snapshots(tmp_path) as snapshots:
        assert snapshots.stat("lazy") == made
        assert snapshots.create("top", "lazy", "active", {}).parent == "lazy"
    crashed.close()


def test_objects_count_once(snapshots: Snapshots) -> None:
    """Each object counts at the oldest lazy snapshot that names it, at the next one after its removal, and at none after the last."""
    for name, toc in (("a", "one"), ("b", "two"), ("c", "one")):
        snapshots.commit_lazy(name, "", {}, a_layer(toc))
    assert [each.key for each in snapshots.without_objects()] == ["a", "b", "c"]
    snapshots.add_objects(digest_of(b"one"), iter(["x", "y", "x"]))
    assert [each.key for each in snapshots.without_objects()] == ["b"]
    assert snapshots.first_objects("b") == []
    snapshots.add_objects(digest_of(b"two"), ["y", "z"])
    snapshots.add_objects(digest_of(b"two"), ["never"])
    assert [sorted(snapshots.first_objects(key)) for key in "abc"] == [["x", "y"], ["z"], []]
    snapshots.remove("a")
    assert [sorted(snapshots.first_objects(key)) for key in "bc"] == [["y", "z"], ["x"]]
    snapshots.remove("b")
    assert sorted(snapshots.first_objects("c")) == ["x", "y"]
    snapshots.remove("c")
    assert snapshots._db.execute("SELECT (SELECT count(*) FROM object) + (SELECT count(*) FROM toc)").fetchone() == (0,)


def test_objects_of_nobody_are_not_noted(snapshots: Snapshots) -> None:
    """A layer that was removed before its objects were noted leaves none; ordinary snapshots have none; no layer may have none."""
    snapshots.add_objects(digest_of(b"toc"), ["x"])
    assert snapshots._db.execute("SELECT count(*) FROM object").fetchone() == (0,)
    committed(snapshots, "ordinary")
    assert snapshots.first_objects("ordinary") == []
    with pytest.raises(SnapshotNotFound):
        snapshots.first_objects("none")
    snapshots.commit_lazy("empty", "", {}, a_layer())
    snapshots.add_objects(digest_of(b"toc"), [])
    assert snapshots.without_objects() == ()


def test_a_failed_commit_leaves_no_toc(snapshots: Snapshots) -> None:
    """What is refused leaves nothing behind in any table."""
    with pytest.raises(SnapshotNotFound):
        snapshots.commit_lazy("a", "none", {}, a_layer())
    assert snapshots._db.execute("SELECT count(*) FROM toc").fetchone() == (0,)


def test_threads_may_call(snapshots: Snapshots) -> None:
    """Of many callers that want one key, one gets it and the others an error."""
    outcomes: list[str] = []

    def create() -> None:
        try:
            snapshots.create("key", "", "active", {})
        except SnapshotExists:
            outcomes.append("exists")
        else:
            outcomes.append("made")

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["exists"] * 7 + ["made"]
