"""Writes a TOC: the JSON that lazyfs/format/toc.py, stargz-snapshotter, CRFS and containers/storage read.

Source: containerd/stargz-snapshotter, docs/estargz.md and estargz/types.go. Three habits of those readers shape it: one streams to
the first `[`, so no array may come before `entries`; one hashes what its decoder consumed and another the whole
text, so nothing follows the closing brace; and all of them fold invalid UTF-8 into one replacement character, which could make
two names equal. Therefore such a name is written as a printable stand-in, unique in its directory, with the raw bytes in
base64 under a lazyfs key (`lazyfsName`, `lazyfsLinkName`, `lazyfsXattrKeys`), which other readers ignore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from lazyfs.format.entry import Entry

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = -62135596800
"""0001-01-01T00:00:00Z; the first time in RFC 3339, and Go's zero time."""
_LAST = 253402300799
"""9999-12-31T23:59:59Z."""


class _Json(msgspec.Struct, omit_defaults=True, rename="camel", gc=False):
    name: str
    type: str
    size: int = 0
    modtime: str = ""
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    offset: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: dict[str, bytes] | None = None
    digest: str = ""
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""
    inner_offset: int = 0
    lazyfs_name: bytes | None = None
    lazyfs_link_name: bytes | None = None
    lazyfs_xattr_keys: dict[str, bytes] | None = None
    lazyfs_mtime: str = ""


class _Toc(msgspec.Struct):
    version: int
    entries: list[_Json]


_EMPTY_DIGEST = "sha256:" + hashlib.sha256(b"").hexdigest()


def encode_toc(entries: Iterable[Entry], digests: Mapping[bytes, bytes] | None) -> bytes:
    """The TOC of `entries`, with their chunks, in the order of the tar.

    `digests` has, by name, the raw sha256 of each file of several chunks; the digest of a file of one chunk is the
    chunk's. None for a TOC that no other program reads: files of several chunks then have no digest.
    """
    listed = tuple(entries)
    names = _StandIns(entry.name for entry in listed)
    rows: list[_Json] = []
    for entry in listed:
        row = _row(entry, names)
        rows.append(row)
        if entry.type != "reg":
            continue
        row.size = entry.size
        if not entry.chunks:
            row.digest = _EMPTY_DIGEST
            continue
        if len(entry.chunks) == 1:
            row.digest = "sha256:" + entry.chunks[0].digest.hex()
        elif digests is not None:
            row.digest = "sha256:" + digests[entry.name].hex()
        last = len(entry.chunks) - 1
        for number, chunk in enumerate(entry.chunks):
            target = row if number == 0 else _Json(name=row.name, type="chunk")
            target.offset = chunk.member
            target.inner_offset = chunk.inner
            target.chunk_offset = chunk.file_offset
            target.chunk_size = chunk.size if number < last else 0
            target.chunk_digest = "sha256:" + chunk.digest.hex()
            if number:
                rows.append(target)
    return msgspec.json.encode(_Toc(1, rows))


def _row(entry: Entry, names: _StandIns) -> _Json:
    name = names.path(entry.name)
    row = _Json(
        name=(name + "/" if name else "./") if entry.type == "dir" else name,
        type=entry.type,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        dev_major=entry.major,
        dev_minor=entry.minor,
    )
    if not _is_text(entry.name):
        row.lazyfs_name = entry.name
    if entry.link:
        row.link_name = names.path(entry.link) if entry.type == "hardlink" else _escaped(entry.link)
        if not _is_text(entry.link):
            row.lazyfs_link_name = entry.link
    # Even for 1970-01-01, which stargz-snapshotter leaves out: it reads an absent time as the year 1.
    row.modtime, exact = _time(entry.mtime_ns)
    if not exact:
        row.lazyfs_mtime = str(entry.mtime_ns)
    if entry.xattrs:
        row.xattrs, row.lazyfs_xattr_keys = _xattrs(entry.xattrs)
    return row


def _time(nanoseconds: int) -> tuple[str, bool]:
    """RFC 3339 in UTC, and whether that is exact: outside its range it is the nearest time that it can express."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    inside = min(max(seconds, _FIRST), _LAST)
    text = (_EPOCH + timedelta(seconds=inside)).isoformat()[:19]
    if inside == seconds and fraction:
        text += f".{fraction:09d}".rstrip("0")
    return text + "Z", inside == seconds


def _xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> tuple[dict[str, bytes], dict[str, bytes] | None]:
    shown: dict[str, bytes] = {key.decode(): value for key, value in xattrs if _is_text(key)}
    raw_keys: dict[str, bytes] = {}
    for key, value in xattrs:
        if not _is_text(key):
            stand_in = _unique(_escaped(key), shown)
            shown[stand_in] = value
            raw_keys[stand_in] = key
    return shown, raw_keys or None


class _StandIns:
    """The names of one layer as JSON text, with stand-ins for components that are not UTF-8."""

    def __init__(self, names: Iterable[bytes]) -> None:
        everything = tuple(names)
        strange = sorted({name for name in everything if not _is_text(name)})
        self._taken = {name.decode() for name in everything if _is_text(name)} if strange else set()
        self._stand_ins: dict[bytes, str] = {}
        for name in strange:
            self._add(name)

    def path(self, name: bytes) -> str:
        return name.decode() if _is_text(name) else self._stand_ins[name]

    def _add(self, name: bytes) -> str:
        if _is_text(name):
            return name.decode()
        known = self._stand_ins.get(name)
        if known is None:
            parent, slash, base = name.rpartition(b"/")
            known = _unique(self._add(parent) + slash.decode() + _component(base), self._taken)
            self._taken.add(known)
            self._stand_ins[name] = known
        return known


def _component(raw: bytes) -> str:
    """`raw` as text of at most 255 bytes, the kernel's limit for one name."""
    text = _escaped(raw)
    if len(text.encode()) <= 255:
        return text
    return text.encode()[:200].decode("utf-8", "ignore") + "~" + hashlib.sha256(raw).hexdigest()[:16]


def _is_text(name: bytes) -> bool:
    if name.isascii():
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _escaped(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _unique(text: str, taken: Container[str]) -> str:
    while text in taken:
        text += "~"
    return text
