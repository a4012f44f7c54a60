"""Which extended attributes of an entry a mount shows: those that a full pull can set.

    security.*, trusted.*                 on everything
    system.posix_acl_access, _default     on everything but symbolic links
    user.*                                on files and directories

Every other name is refused by Linux's file systems, and unpackers pass over it. The same list holds in every mode; what a layer says
about overlayfs (`trusted.overlay.*`) is each mode's own business. The converter keeps all that a tar says.

Source: xattr(7); the kernel's fs/xattr.c (xattr_permission) and fs/posix_acl.c.
"""

from __future__ import annotations

from typing import Final

from lazyfs.format.entry import Entry

_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_NAMESPACES: Final = (b"security.", b"trusted.", b"user.")


def shown_xattrs(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    """The attributes of `entry` that a mount shows, in their order. An entry that is no hard link."""
    if not entry.xattrs:
        return ()
    return tuple(item for item in entry.xattrs if _is_shown(item[0], entry))


def _is_shown(key: bytes, entry: Entry) -> bool:
    if key in _ACLS:
        return entry.type != "symlink"
    if not key.startswith(_NAMESPACES) or key in _NAMESPACES:
        return False
    return entry.type in ("reg", "dir") or not key.startswith(b"user.")
