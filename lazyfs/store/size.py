"""Sizes in command-line options and configuration."""

from __future__ import annotations

import re
from typing import Final

from lazyfs.errors import UsageError, show

_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_SIZE: Final = 1 << 62


def parse_size(text: str) -> int:
    """Bytes for `500M`, `1.5G`, `20GiB`: powers of 1024. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)([KMGT]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    size = int(float(found[1]) * _SIZES[found[2].upper()]) if found else -1
    if not 0 <= size <= _MAX_SIZE:
        raise UsageError(f"{show(text)} is not a size", hint="Write a number of bytes, or a number followed by K, M, G or T")
    return size
