"""What must be on disk before something else is done, because the power may fail in between."""

from __future__ import annotations

import os

from lazyfs.format.digest import digest_of
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.synced import watched
from tests.unit.store.contents import content, keep_all, noise


def test_rows_are_synced_before_an_evicted_file_goes(store: Store) -> None:
    """Otherwise the old row could return for a new file that is not on disk, which would be served with holes."""
    made = [keep_all(store, [noise(5000, seed)]) for seed in range(3)]
    store.index.change()
    said: list[str] = []
    before: list[list[str]] = []
    writer = store.index._database._writer
    assert writer is not None
    writer.set_trace_callback(said.append)

    def protected(name: str) -> bool:
        if any(text.startswith("DELETE") for text in said):  # the rows are deleted: the file is next
            assert os.path.exists(store.directory.objects + name)
            before.append(list(said))
        return False

    freed = store.eviction.remove(None, InUse(), protected, mounted_too=False)
    assert set(freed.names) == {one.name for one in made} and len(before) == 3
    for text in before:
        begin = text.index("PRAGMA synchronous = FULL")
        end = text.index("COMMIT")
        assert begin < text.index("BEGIN IMMEDIATE") < end
        assert sum(part.startswith("DELETE") for part in text[begin:end]) == 3
        assert "PRAGMA synchronous = NORMAL" not in text[begin:end]


def test_rows_are_synced_before_a_removed_file_is_created_again(store: Store, expect_log: LogWatch) -> None:
    """The same for a file that was removed by hand."""
    expect_log("its file is missing")
    made = content(noise(5000, 1), noise(5000, 2))
    store.keep(made, 0, noise(5000, 1))
    store.index.change()
    os.unlink(store.directory.partial + made.name)
    said: list[str] = []
    writer = store.index._database._writer
    assert writer is not None
    writer.set_trace_callback(said.append)
    store.keep(made, 1, noise(5000, 2))
    assert said.index("PRAGMA synchronous = FULL") < said.index("BEGIN IMMEDIATE")


def test_a_document_is_on_the_disk_before_it_has_its_name(store: Store) -> None:
    """An empty file under a document's name would be found damaged, but only when the registry was no longer expected to be
    needed."""
    data = b'{"schemaVersion": 2}'
    with watched() as done:
        store.keep_document(digest_of(data), data)
    (synced, temporary, size), (renamed, name, _) = done
    assert (synced, size) == ("synced", len(data))
    assert (renamed, name) == (f"renamed from {temporary}", store.directory.documents + digest_of(data)[7:])
