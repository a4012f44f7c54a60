"""Which extended attributes of an entry a mount shows: the ones that a full pull can set.

    security.*, trusted.*                 on everything
    system.posix_acl_access               on everything but symbolic links, if it is a valid ACL
    system.posix_acl_default              on directories, if it is a valid ACL
    user.*                                on files and directories

Linux's file systems refuse all other names, and unpackers skip them. The list is the same in every mode; each mode handles a
layer's overlayfs attributes (`trusted.overlay.*`) itself. The converter keeps all attributes of a tar.

Source: xattr(7); the kernel's fs/xattr.c (xattr_permission) and fs/posix_acl.c.
"""

from __future__ import annotations

import struct
from typing import Final

from lazyfs.format.entry import Entry

_ACCESS: Final = b"system.posix_acl_access"
_DEFAULT: Final = b"system.posix_acl_default"
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
"""Tag, permissions, id."""
_ACL_VERSION: Final = 2
_ACL_TAGS: Final = frozenset({0x01, 0x02, 0x04, 0x08, 0x10, 0x20})
_NAMESPACES: Final = (b"security.", b"trusted.", b"user.")


def shown_xattrs(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    """The attributes of `entry` that a mount shows, in their order. `entry` is not a hard link."""
    if not entry.xattrs:
        return ()
    return tuple(item for item in entry.xattrs if _is_shown(*item, entry))


def has_acl(entry: Entry) -> bool:
    """Whether the entry has an ACL."""
    return any(key in (_ACCESS, _DEFAULT) for key, _ in entry.xattrs)


def _is_shown(key: bytes, value: bytes, entry: Entry) -> bool:
    if key == _ACCESS:
        return entry.type != "symlink" and _is_acl(value)
    if key == _DEFAULT:
        return entry.type == "dir" and _is_acl(value)
    if not key.startswith(_NAMESPACES) or key in _NAMESPACES:
        return False
    return entry.type in ("reg", "dir") or not key.startswith(b"user.")


def _is_acl(value: bytes) -> bool:
    """Whether the kernel accepts `value` as an ACL. Others could never have been set, and reading them fails."""
    entries = memoryview(value)[_ACL_HEADER.size :]
    if not entries or len(entries) % _ACL_ENTRY.size or _ACL_HEADER.unpack_from(value)[0] != _ACL_VERSION:
        return False
    return all(tag in _ACL_TAGS for tag, _, _ in _ACL_ENTRY.iter_unpack(entries))
