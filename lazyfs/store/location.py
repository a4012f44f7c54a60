"""Where the store is when nobody says."""

from __future__ import annotations

import os
from pathlib import Path


def default_directory() -> Path:
    """/var/lib/lazyfs for root, the user's cache folder (XDG) else."""
    if os.geteuid() == 0:
        return Path("/var/lib/lazyfs")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return base / "lazyfs"
