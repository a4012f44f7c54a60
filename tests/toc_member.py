"""The TOC in a gzip member, as eStargz's blobs have it."""

from __future__ import annotations

from lazyfs.format.dialect import TocLocation
from lazyfs.format.estargz import ESTARGZ
from lazyfs.image.toc_member import TocMember


def read_toc_member(member: bytes, what: str) -> bytes | bytearray:
    """The JSON. Raises InvalidToc, InvalidInput."""
    return TocMember(ESTARGZ, TocLocation(0, len(member), 0), what, member).document()
