"""The last 51 bytes of an eStargz blob: an empty gzip member whose extra field says where the TOC begins.

Source: containerd/stargz-snapshotter, docs/estargz.md ("Footer") and estargz/gzip.go. The blob stays a chain of
ordinary gzip members, so every gunzip reads past it.
"""

from __future__ import annotations

from typing import Final

from lazyfs.errors import InvalidToc, NotLazy, show

FOOTER_SIZE: Final = 51

_HEADER: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + b"\x1a\0" + b"SG" + b"\x16\0"
_MAGIC: Final = b"STARGZ"
_TRAILER: Final = b"\x01\0\0\xff\xff" + bytes(8)


def build_footer(toc_offset: int) -> bytes:
    """The 51 bytes for a TOC member at blob offset `toc_offset`."""
    return _HEADER + b"%016x" % toc_offset + _MAGIC + _TRAILER


def parse_footer(footer: bytes, blob_size: int, what: str) -> int:
    """The TOC member's offset in a blob of `blob_size` bytes whose last 51 are `footer`.

    Raises NotLazy if it is not an eStargz footer, InvalidToc if it points outside the blob.
    `what` names the layer.
    """
    if len(footer) != FOOTER_SIZE or footer[:16] != _HEADER or footer[32:38] != _MAGIC:
        raise NotLazy(f"{what} is an ordinary layer without an eStargz footer")
    digits = footer[16:32]
    try:
        offset = int(digits, 16)
    except ValueError:
        raise InvalidToc(f"{what}: the footer's TOC offset is {show(digits)}, which is not a hexadecimal number") from None
    if not 0 <= offset < blob_size - FOOTER_SIZE:
        raise InvalidToc(f"{what}: the footer puts the TOC at {offset}, outside the blob's {blob_size} bytes")
    return offset
