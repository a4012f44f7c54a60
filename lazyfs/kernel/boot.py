"""Which start of the machine this is."""

from __future__ import annotations

import os
from pathlib import Path


def boot_id() -> str:
    """Another one after each start. LAZYFS_BOOT_ID stands in for it in tests that cut the power."""
    return os.environ.get("LAZYFS_BOOT_ID") or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
