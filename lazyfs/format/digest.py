"""Digests: `sha256:` and 64 hex digits as text (blobs, documents), 32 raw bytes in memory (chunks).

Only sha256 is accepted. The specifications allow others, but every image in use is sha256, and one algorithm means
one name per content in the store.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from lazyfs.errors import DigestMismatch, InvalidManifest, show

Digest = NewType("Digest", str)
"""`sha256:<64 lower-case hex digits>`, already checked."""

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}\Z")


def is_digest(text: str) -> bool:
    """Whether `parse_digest` accepts it."""
    return _PATTERN.match(text) is not None


def parse_digest(text: object, what: str = "digest") -> Digest:
    """`text` as a checked digest. Raises InvalidManifest, naming `what`, for anything else."""
    if not isinstance(text, str) or not _PATTERN.match(text):
        raise InvalidManifest(f"{what} is {show(text)}, which is not a sha256 digest")
    return Digest(text)


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The sha256 digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def from_raw(raw: bytes) -> Digest:
    """The text form of 32 raw bytes."""
    return Digest("sha256:" + raw.hex())


def to_raw(digest: Digest) -> bytes:
    """The 32 raw bytes of `digest`."""
    return bytes.fromhex(digest[7:])


def check(data: bytes | bytearray | memoryview, digest: Digest, what: str) -> None:
    """Raise DigestMismatch, naming `what`, unless `data` hashes to `digest`."""
    got = digest_of(data)
    if got != digest:
        raise DigestMismatch(f"{what} should hash to {digest} but hashes to {got}")
