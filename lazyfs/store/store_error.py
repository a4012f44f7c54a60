"""What the operating system refuses, in words of ours.

A file of its own, with nothing beside it: the processes that build EROFS images need no more of the store, and what they
import is part of somebody's first mount.
"""

from __future__ import annotations

import errno
from typing import Final

from lazyfs.errors import LocalError, StoreFull, StoreUnusable

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def store_error(error: OSError, what: str) -> LocalError:
    """What the operating system refused, as one of our errors: no room, or anything else."""
    message = f"{what}: {error.strerror or error}"
    if error.errno in _NO_ROOM:
        return StoreFull(message, hint="Free space, or name another directory with --store.")
    return StoreUnusable(message, hint="Name another directory with --store.")
