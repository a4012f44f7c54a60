"""The 512-byte tar header: its fields, and how lazyfs writes them.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; base 256 and the `S` fields from
GNU tar. Written headers are a pure function of the entry: no clock, no process id, no user names, PAX records only for what a
ustar header cannot hold, in one fixed order.
"""

from __future__ import annotations

import struct
from typing import Final

from lazyfs.errors import InvalidTar, show
from lazyfs.format.entry import Entry, EntryType
from lazyfs.format.pax import XATTR_PREFIX, format_time, record

BLOCK: Final = 512
END_OF_TAR: Final = bytes(2 * BLOCK)

HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
"""name, mode, uid, gid, size, mtime, checksum, type, link name, magic and version, user, group, major, minor, prefix, rest."""

_TYPE_FLAGS: Final[dict[EntryType, bytes]] = {
    "reg": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "dir": b"5",
    "fifo": b"6",
}
_MAX_OCTAL_7: Final = 0o7777777
_MAX_OCTAL_11: Final = 0o77777777777
_PAX_NAME: Final = b"././@PaxHeader"
_MAGIC: Final = b"ustar\x0000"
_BLANK_CHECKSUM: Final = b"        "


def padding(size: int) -> int:
    """The number of bytes between `size` bytes of data and the next block."""
    return -size % BLOCK


def header_number(field: bytes, what: str) -> int:
    """A header's numeric field: octal text, or base 256 where its first bit is set (which may be negative).

    Raises InvalidTar, naming `what`.
    """
    digits = field[:-1]
    if digits.isdigit() and field[-1] in b" \0" and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)  # the usual form
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << bits - 1)
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise InvalidTar(f"{what}: the header holds {show(field)} where a number should be")


def header_bytes(entry: Entry) -> bytes:
    """The header of `entry`, with the PAX header before it where one is needed: whole blocks.

    The root is written as `./`, other directories with a trailing slash.
    """
    name = entry.name + b"/" if entry.type == "dir" and entry.name else entry.name or b"./"
    records: list[bytes] = []
    if entry.mtime_ns % 10**9 or not 0 <= entry.mtime_ns <= _MAX_OCTAL_11 * 10**9:
        records.append(record(b"mtime", format_time(entry.mtime_ns)))
    prefix = b""
    short = name
    if not name.isascii() or len(name) > 100:
        prefix, short = _split(name) if name.isascii() else (b"", b"")
        if not short:
            records.append(record(b"path", name))
            short = _ascii(name)
    link = entry.link
    if not link.isascii() or len(link) > 100:
        records.append(record(b"linkpath", link))
        link = _ascii(link)
    if entry.uid > _MAX_OCTAL_7:
        records.append(record(b"uid", b"%d" % entry.uid))
    if entry.gid > _MAX_OCTAL_7:
        records.append(record(b"gid", b"%d" % entry.gid))
    if entry.size > _MAX_OCTAL_11:
        records.append(record(b"size", b"%d" % entry.size))
    records += [record(XATTR_PREFIX + key, value) for key, value in entry.xattrs]
    seconds = entry.mtime_ns // 10**9
    block = _block(
        short,
        entry.mode,
        entry.uid if entry.uid <= _MAX_OCTAL_7 else 0,
        entry.gid if entry.gid <= _MAX_OCTAL_7 else 0,
        entry.size if entry.size <= _MAX_OCTAL_11 else 0,
        seconds if 0 <= seconds <= _MAX_OCTAL_11 else 0,
        _TYPE_FLAGS[entry.type],
        link,
        entry.major,
        entry.minor,
        prefix,
    )
    if not records:
        return block
    extended = b"".join(records)
    pax = _block(_PAX_NAME, 0, 0, 0, len(extended), 0, b"x", b"", 0, 0, b"")
    return b"".join((pax, extended, bytes(padding(len(extended))), block))


def _block(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    flag: bytes,
    link: bytes,
    major: int,
    minor: int,
    prefix: bytes,
) -> bytes:
    before = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, uid, gid, size, mtime)
    after = b"%b%b%b%b%b%b%b" % (
        flag,
        link.ljust(100, b"\0"),
        _MAGIC,
        bytes(64),
        _device_number(major),
        _device_number(minor),
        prefix.ljust(167, b"\0"),
    )
    return b"%b%06o\0 %b" % (before, sum(before) + sum(after) + sum(_BLANK_CHECKSUM), after)


def _device_number(number: int) -> bytes:
    """Octal if it fits, else base 256: PAX has no record for device numbers that all readers know."""
    return b"%07o\0" % number if number <= _MAX_OCTAL_7 else b"\x80" + number.to_bytes(7, "big")


def _split(name: bytes) -> tuple[bytes, bytes]:
    """`name` as a ustar prefix and name, joined by a slash; two empty strings if it does not fit."""
    cut = name.find(b"/", len(name) - 101)
    if 0 < cut <= 155 and cut < len(name) - 1:
        return name[:cut], name[cut + 1 :]
    return b"", b""


def _ascii(name: bytes) -> bytes:
    """An approximation for readers without PAX; in the right directory if it is short."""
    return name.decode("ascii", "replace").encode("ascii", "replace")[-100:]
