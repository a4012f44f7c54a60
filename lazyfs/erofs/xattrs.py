"""The extended attributes of an inode, as EROFS stores them after it.

Only lazyfs may set the attributes that overlayfs obeys (`trusted.overlay.*`). A layer's own attributes of that name are escaped as
overlayfs escapes them itself, `trusted.overlay.overlay.NAME`: the container sees `trusted.overlay.NAME`, and no image can
point to another's object. `user.overlay.*` has no meaning in a mount made by root and overlayfs would not undo an escape, so it
stays as it is.
"""

from __future__ import annotations

from typing import Final

from lazyfs.erofs.ondisk import (
    XATTR_BODY_MAX,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    XATTR_VALUE_MAX,
    XATTR_WHOLE_NAMES,
)
from lazyfs.errors import InvalidToc, show
from lazyfs.format.entry import Entry
from lazyfs.format.xattr import shown_xattrs

_HINT: Final = "A portable mount (--mode portable) shows it."
OVERLAY: Final = b"trusted.overlay."
_ESCAPED: Final = OVERLAY + b"overlay."
_NAME_MAX: Final = 255


def xattr_body(own: bytes, entry: Entry) -> bytes:
    """The bytes between an inode and its data: `own` (encoded, for overlayfs), then those of `entry` that a mount shows. Empty if there
    are none.

    Raises InvalidToc, naming the entry, if they are too large for EROFS.
    """
    name = entry.name
    body = own
    for key, value in shown_xattrs(entry):
        escaped = _ESCAPED + key[len(OVERLAY) :] if key.startswith(OVERLAY) else key
        # overlayfs cannot escape a name that would exceed the limit of a name: it treats that attribute as absent.
        if len(escaped) > _NAME_MAX:
            continue
        if len(value) > XATTR_VALUE_MAX:
            raise InvalidToc(
                f"{show(name)} has the extended attribute {show(key)} of {len(value)} bytes, and EROFS stores {XATTR_VALUE_MAX}",
                hint=_HINT,
            )
        body += encoded(escaped, value)
    if not body:
        return b""
    if len(XATTR_HEADER) + len(body) > XATTR_BODY_MAX:
        raise InvalidToc(
            f"{show(name)} has {len(body)} bytes of extended attributes, and EROFS stores {XATTR_BODY_MAX}", hint=_HINT
        )
    return XATTR_HEADER + body


def encoded(key: bytes, value: bytes) -> bytes:
    """One attribute as stored; empty for a name without an EROFS prefix."""
    index = XATTR_WHOLE_NAMES.get(key)
    rest = b""
    if index is None:
        for number, prefix in XATTR_PREFIXES:
            if key.startswith(prefix) and len(key) > len(prefix):
                index, rest = number, key[len(prefix) :]
                break
        else:
            return b""
    data = XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return data + b"\0" * (-len(data) % 4)


def unescaped(key: bytes) -> bytes | None:
    """The layer's own name for a stored attribute; None for one addressed to overlayfs."""
    if key.startswith(_ESCAPED):
        return OVERLAY + key[len(_ESCAPED) :]
    return None if key.startswith(OVERLAY) else key


OPAQUE: Final = encoded(OVERLAY + b"opaque", b"y")
"""This directory shows nothing of the layers below."""
WITH_WHITEOUTS: Final = encoded(OVERLAY + b"origin", b"")
"""overlayfs filters whiteouts out of a listing only where directories merge, or where it believes that a directory was copied
up: without this, `ls` in a directory that no lower layer has would list names that cannot be opened."""
_METACOPY: Final = encoded(OVERLAY + b"metacopy", b"")
"""The inode holds only a file's metadata."""


def data_at(object_name: str) -> bytes:
    """The attributes that point overlayfs to a file's bytes: the object of that name in the first data-only layer that has it."""
    return _METACOPY + encoded(OVERLAY + b"redirect", b"/" + object_name.encode())
