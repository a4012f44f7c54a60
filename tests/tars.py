"""Tars for tests: read back, built by hand where no honest program would write them so."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

from lazyfs.errors import InvalidTar
from lazyfs.format.tar import TarMember, read_tar

END = bytes(1024)


def read(data: bytes, blob_size: int = 1 << 40) -> list[TarMember]:
    """The members of a tar in memory."""
    return list(read_tar(lambda offset, size: data[offset : offset + size], len(data), blob_size, "layer 1"))


def complaint(data: bytes) -> str:
    """What reading a tar ends with: our own words against it, or nothing."""
    try:
        read(data)
    except InvalidTar as error:
        return str(error)
    return ""


def content(member: TarMember, data: bytes) -> bytes:
    """A member's bytes, with zeros where it has holes."""
    found = bytearray(member.entry.size)
    for extent in member.extents:
        found[extent.file_offset : extent.file_offset + extent.size] = data[extent.tar_offset : extent.tar_offset + extent.size]
    return bytes(found)


def header(name: bytes = b"a", flag: bytes = b"0", size: int = 0, link: bytes = b"", **fields: bytes) -> bytes:
    """One header block. `fields` replace raw fields: mode, uid, gid, size_field, mtime, magic, major, minor, prefix, rest."""
    parts = [
        name.ljust(100, b"\0"),
        fields.get("mode", b"0000644\0"),
        fields.get("uid", b"0000000\0"),
        fields.get("gid", b"0000000\0"),
        fields.get("size_field", b"%011o\0" % size),
        fields.get("mtime", b"%011o\0" % 0),
        b"        ",
        flag,
        link.ljust(100, b"\0"),
        fields.get("magic", b"ustar\x0000"),
        bytes(64),
        fields.get("major", b"0000000\0"),
        fields.get("minor", b"0000000\0"),
        fields.get("prefix", b"").ljust(155, b"\0"),
        fields.get("rest", b"").ljust(12, b"\0"),
    ]
    assert sum(map(len, parts)) == 512
    parts[6] = fields.get("checksum", b"%06o\0 " % sum(b"".join(parts)))
    return b"".join(parts)


def padded(data: bytes) -> bytes:
    """`data`, and zeros up to the next block."""
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes, flag: bytes = b"0", **fields: bytes) -> bytes:
    """A header and its data."""
    return header(name, flag, len(data), **fields) + padded(data)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    """An extended header with these records, their lengths computed by trying."""
    body = b""
    for key, value in records:
        length = next(n for n in range(1, 1 << 21) if n == len(b"%d %b=%b\n" % (n, key, value)))
        body += b"%d %b=%b\n" % (length, key, value)
    return file(b"PaxHeaders/x", body, flag)


def written(*infos: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], dialect: int = tarfile.PAX_FORMAT) -> bytes:
    """What Python's tarfile makes of these."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect, encoding="utf-8", errors="surrogateescape") as tar:
        for item in infos:
            info, data = item if isinstance(item, tuple) else (item, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, **attributes: object) -> tarfile.TarInfo:
    """A TarInfo with attributes set."""
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def names(members: Iterable[TarMember]) -> list[bytes]:
    """Only the names."""
    return [member.entry.name for member in members]
