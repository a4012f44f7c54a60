"""Documents are verified whenever they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.format.digest import digest_of
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import DAMAGES

DATA = b'{"schemaVersion": 2}'
DIGEST = digest_of(DATA)


def test_documents_outlive_the_process(directory: Path) -> None:
    """The next process has what was kept, and nothing else."""
    with Store.open(directory) as store:
        store.keep_document(DIGEST, DATA)
        assert store.document(DIGEST) == DATA
    with Store.open(directory) as store:
        assert store.document(DIGEST) == DATA
        assert store.document(digest_of(b"other")) is None


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_document_is_dropped(
    store: Store, directory: Path, damage: Callable[[Path], None], expect_log: LogWatch
) -> None:
    """It is reported missing, counted, removed, and can be kept again."""
    store.keep_document(DIGEST, DATA)
    path = directory / "documents" / DIGEST[7:]
    damage(path)
    expect_log("dropped a damaged document")
    assert store.document(DIGEST) is None
    assert not path.exists()
    assert store.statistics().damaged == 1
    store.keep_document(DIGEST, DATA)
    assert store.document(DIGEST) == DATA


def test_bytes_under_a_wrong_digest_are_not_given_out(store: Store, expect_log: LogWatch) -> None:
    """Whatever a caller keeps: a document hashes to its name, or does not exist."""
    store.keep_document(DIGEST, b"something else")
    expect_log("dropped a damaged document")
    assert store.document(DIGEST) is None
