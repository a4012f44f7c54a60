"""What overlayfs leaves in an upper directory, as the tar of an OCI layer.

Overlayfs marks what is gone with character devices 0:0 and what hides a directory below with an xattr; a layer's tar says
the same with `.wh.NAME` and `.wh..wh..opq`. Ordinary apt layers carry 5 to 64 opaque directories, because overlayfs marks
every directory that is created inside a merged one.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

OVERLAY = "trusted.overlay."


class Blob(NamedTuple):
    """A layer's blob: sizes in bytes, digests spelled."""

    digest: str
    size: int
    diff_id: str
    tar_size: int


class LayerFile:
    """A writable file: what goes in is hashed, compressed as `gzip -6 -n` does and hashed again on its way to `target`."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._outer, self._inner = hashlib.sha256(), hashlib.sha256()
        self._size = self._tar_size = 0

    def write(self, data: bytes) -> int:
        self._inner.update(data)
        self._tar_size += len(data)
        self._keep(self._gzip.compress(data))
        return len(data)

    def _keep(self, data: bytes) -> None:
        self._outer.update(data)
        self._size += len(data)
        self._target.write(data)

    def finish(self) -> Blob:
        self._keep(self._gzip.flush())
        return Blob("sha256:" + self._outer.hexdigest(), self._size, "sha256:" + self._inner.hexdigest(), self._tar_size)


def decimal(time_ns: int) -> str:
    """Seconds as a PAX record has them, exact: -1 is -0.000000001."""
    return f"{'-' if time_ns < 0 else ''}{abs(time_ns) // 10**9}.{abs(time_ns) % 10**9:09d}"


def write_layer(upper: Path, file: LayerFile, *, exact_times: bool) -> None:
    """Write the tar of an upper directory to `file`, entries sorted, directories before what they hold."""
    links: dict[int, str] = {}
    with tarfile.open(
        fileobj=cast(Any, file), mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for path, name in walk(str(upper), ""):
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode):
                continue
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                head, base = os.path.split(name)
                tar.addfile(tarfile.TarInfo(os.path.join(head, ".wh." + base)))
                continue
            member, opaque = describe(path, name, status, links)
            if exact_times and status.st_mtime_ns % 10**9:
                member.pax_headers = {**member.pax_headers, "mtime": decimal(status.st_mtime_ns)}
            if member.isreg():
                with open(path, "rb") as data:
                    tar.addfile(member, data)
            else:
                tar.addfile(member)
            if opaque:
                tar.addfile(tarfile.TarInfo(os.path.join(name, ".wh..wh..opq")))


def walk(folder: str, name: str) -> Iterator[tuple[str, str]]:
    """(path, name in the tar) of everything under `folder`."""
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        inside = f"{name}/{entry.name}" if name else entry.name
        yield entry.path, inside
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, inside)


def describe(path: str, name: str, status: os.stat_result, links: dict[int, str]) -> tuple[tarfile.TarInfo, bool]:
    """The tar header of one file, and whether it is an opaque directory. `links` remembers inodes with several names."""
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    member.mtime = status.st_mtime_ns // 10**9
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        earlier = links.setdefault(status.st_ino, name) if status.st_nlink > 1 else name
        if earlier == name:
            member.size = status.st_size
        else:
            member.type, member.linkname = tarfile.LNKTYPE, earlier
    elif kind == stat.S_IFLNK:
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        member.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    else:
        member.type = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}[kind]
    opaque, headers = False, dict[str, str]()
    if not member.issym() and not member.islnk():
        for key in os.listxattr(path, follow_symlinks=False):
            if key.startswith(OVERLAY):
                opaque |= key == OVERLAY + "opaque"
            else:
                value = os.getxattr(path, key, follow_symlinks=False)
                headers["SCHILY.xattr." + key] = value.decode("utf-8", "surrogateescape")
    member.pax_headers = headers
    return member, opaque
