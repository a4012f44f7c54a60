"""The default location of the store."""

from __future__ import annotations

import os
from pathlib import Path


def default_directory() -> Path:
    """/var/lib/lazyfs for root, else a directory in the user's cache (XDG)."""
    if os.geteuid() == 0:
        return Path("/var/lib/lazyfs")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return base / "lazyfs"
