"""Identifies the current boot of the machine."""

from __future__ import annotations

import os
from pathlib import Path


def boot_id() -> str:
    """An id that changes with each boot. LAZYFS_BOOT_ID replaces it in tests that cut the power."""
    return os.environ.get("LAZYFS_BOOT_ID") or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
