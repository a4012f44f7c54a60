"""Turns errors of the operating system into errors of the store.

Kept apart because the processes that build EROFS images need nothing else of the store, and their imports delay the first
mount.
"""

from __future__ import annotations

import errno
from typing import Final

from lazyfs.errors import LocalError, StoreFull, StoreUnusable

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def store_error(error: OSError, what: str) -> LocalError:
    """StoreFull if the error means that there is no room, else StoreUnusable."""
    message = f"{what}: {error.strerror or error}"
    if error.errno in _NO_ROOM:
        return StoreFull(message, hint="Free space, or name another directory with --store.")
    return StoreUnusable(message, hint="Name another directory with --store.")
