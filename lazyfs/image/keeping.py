"""Keeps the documents of an image in the store for the next time, if there is space."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lazyfs.errors import StoreFull
from lazyfs.format.digest import Digest

if TYPE_CHECKING:
    from lazyfs.store.store import Store

_log = logging.getLogger(__name__)


def keep(store: Store, digest: Digest, data: bytes | bytearray, note: str = "", value: str = "") -> None:
    """Blocking. Keep a document and, under the key `note`, a note. On a full disk they are used without being kept, as chunks are.

    Raises StoreUnusable.
    """
    try:
        store.keep_document(digest, data)
        if note:
            store.keep_note(note, value)
    except StoreFull as error:
        _log.info("cannot store %s: %s", digest, error)
