"""Reads a layer's tar: its entries, and where the bytes of its files are.

Sources: POSIX.1-2017 (ustar, pax), GNU tar's manual (long names, base 256, sparse files). Where readers differ, this one follows Go's
archive/tar, because containerd, docker, podman and umoci unpack with it, and a lazily mounted layer must show what they unpack. So global PAX headers are checked and passed over, a link or directory has no data whatever
its size field says, and one zero block followed by anything else is an error. Two things that Go refuses are accepted because their
meaning is clear: sparse files in all their forms, and contiguous files.

The tar is hostile input. Names come out clean or are refused: `..` stops at the root; NUL, components over 255 bytes and names over 4095 are refused; so are broken
checksums, a file that ends early, a hard link to what is not an earlier file, and what would take more than a bounded
amount of memory (extended headers over 1 MiB, 2,000,000 entries, the bounds in format/bounds.py) or disk (holes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from lazyfs.errors import InvalidTar, show
from lazyfs.format.bounds import ATTRIBUTE, ENTRY, RECORD, Bounds
from lazyfs.format.entry import Entry, EntryType, owner_id
from lazyfs.format.hidden import HiddenFiles
from lazyfs.format.pax import XATTR_PREFIX, parse_number, parse_records, parse_time
from lazyfs.format.sparse import Extent, parse_data_map, parse_old_map, parse_records_map, place
from lazyfs.format.tar_header import BLOCK, HEADER, header_number
from lazyfs.format.toc import MAX_NAME
from lazyfs.format.toc_raw import MAX_ENTRIES
from lazyfs.format.whiteout import LeftOut, name_kind, whiteout

_WINDOW: Final = 64 << 10
"""One read covers many small files; little is wasted after each large one."""
_MAX_EXTENDED: Final = 1 << 20
_MAX_DEVICE: Final = 0xFFFFFFFF
_SHORT: Final = 200
"""Bytes. A short name is put into messages as it is: `show` costs a microsecond for each entry."""
_MAX_LINK: Final = 4095

_TYPES: Final[dict[bytes, EntryType]] = {
    b"0": "reg",
    b"\0": "reg",
    b"7": "reg",
    b"S": "reg",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}

ReadAt = Callable[[int, int], bytes]
"""Returns the bytes at `(offset, size)`: fewer than `size` only at the end."""


class TarMember(NamedTuple):
    """An entry and where its bytes are. Bytes of a file that no extent covers are zeros."""

    entry: Entry
    extents: tuple[Extent, ...]


def read_tar(
    read_at: ReadAt, size: int, blob_size: int, what: str, left_out: LeftOut | None = None, *, bounds: Bounds | None = None
) -> Iterator[TarMember]:
    """The entries of a tar of `size` bytes, in its order, whiteouts and repeated names included.

    `blob_size` is the layer's compressed size, which bounds what its entries and holes may cost (format/bounds.py); they are charged
    to `bounds` if it is given. `what` names the layer in errors.
    Entries that are never shown (format/whiteout.py) are counted in `left_out`; the first hard link to one becomes that file.
    Raises InvalidTar when the reader gets to the part that is wrong.
    """
    reader = _Reader(read_at, size, what, bounds or Bounds(blob_size, what, InvalidTar))
    files: set[bytes] = set()
    hidden = HiddenFiles()
    count = 0
    while (member := reader.next_member()) is not None:
        entry = member.entry
        count += 1
        if count > MAX_ENTRIES:
            raise InvalidTar(f"{what}: the tar has more than {MAX_ENTRIES} entries")
        kind = name_kind(entry.name)
        if kind == "whiteout":
            member = TarMember(whiteout(entry), ())
        elif kind != "shown":
            hidden.add(entry, member.extents)
            if left_out is not None:
                left_out.add(entry.name, kind)
            continue
        elif entry.type == "dir":
            files.discard(entry.name)
            hidden.replaced(entry.name)
        else:
            if entry.type == "hardlink" and (entry.link not in files or entry.link == entry.name):
                found = hidden.linked(entry)
                if found is None:
                    raise InvalidTar(
                        f"{what}: {show(entry.name)} is a hard link to {show(entry.link)}, which is not an earlier file of its layer"
                    )
                member = TarMember(*found)
            else:
                hidden.replaced(entry.name)
            files.add(entry.name)
        yield member


def clean_name(raw: bytes, what: str) -> bytes:
    """`raw` as a clean, relative name, `b""` for the root. Raises InvalidTar for names that no layer may hold."""
    if b"\0" in raw:
        raise InvalidTar(f"{what}: the name {show(raw)} holds a NUL")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        parts = _climbed(parts)
    if len(raw) > 255 and any(len(part) > 255 for part in parts):
        raise InvalidTar(f"{what}: the name {show(raw)} has a component of more than 255 bytes")
    if parts and parts[-1] in (b".wh.", b".wh..", b".wh..."):
        raise InvalidTar(f"{what}: {show(raw)} is a whiteout of nothing")
    name = b"/".join(parts)
    if len(name) > MAX_NAME:
        raise InvalidTar(f"{what}: the name {show(raw)} has more than {MAX_NAME} bytes")
    return name


def _climbed(parts: list[bytes]) -> list[bytes]:
    """The components without `..`, each of which removes the one before it, if any, without following links. As Go's path.Clean does,
    with which containerd and umoci begin."""
    kept: list[bytes] = []
    for part in parts:
        if part != b"..":
            kept.append(part)
        elif kept:
            kept.pop()
    return kept


class _Reader:
    """Walks from header to header, and keeps what extended headers say about the next one."""

    def __init__(self, read_at: ReadAt, size: int, what: str, bounds: Bounds) -> None:
        self._read_at = read_at
        self._size = size
        self._what = what
        self._bounds = bounds
        self._offset = 0
        self._window = b""
        self._window_at = 0

    def next_member(self) -> TarMember | None:
        records: list[tuple[bytes, bytes]] = []
        long_name = b""
        long_link = b""
        special = False
        while True:
            header = self._next_header()
            if header is None:
                if special:
                    raise InvalidTar(f"{self._what}: the tar ends after an extended header", hint="It is cut short")
                return None
            special = True
            flag = header[156:157]
            if flag in _TYPES:
                return self._member(header, flag, records, long_name, long_link)
            self._bounds.describe(ENTRY)
            data = self._special_data(header, flag)
            if flag in b"xX":
                records = parse_records(data, self._what)
                self._bounds.describe(RECORD * len(records))
            elif flag == b"g":
                parse_records(data, self._what)
                special = False
            elif flag == b"L":
                long_name = data.partition(b"\0")[0]
            elif flag == b"K":
                long_link = data.partition(b"\0")[0]
            elif flag == b"V":
                special = False

    def _next_header(self) -> bytes | None:
        """The header at the current offset, its checksum verified; None at the end of the tar."""
        offset = self._offset
        if offset == self._size:
            return None
        block = self._block_at(offset)
        if not block[0] and not any(block):
            if offset + BLOCK < self._size and any(self._block_at(offset + BLOCK)):
                raise InvalidTar(f"{self._what}: the tar goes on behind an empty block at {offset}")
            return None
        if not _checksum_right(block):
            raise InvalidTar(
                f"{self._what}: the block at {offset} of its tar is not a header (wrong checksum)",
                hint="The layer is not a tar" if offset == 0 else "The layer is damaged",
            )
        self._offset = offset + BLOCK
        return block

    def _special_data(self, header: bytes, flag: bytes) -> bytes:
        if flag not in b"xXgLKV":
            raise InvalidTar(f"{self._what}: {self._shown(header)} is of the unknown tar type {flag!r}")
        size = header_number(header[124:136], self._what)
        if not 0 <= size <= _MAX_EXTENDED:
            raise InvalidTar(f"{self._what}: an extended header has {size} bytes, more than {_MAX_EXTENDED}")
        self._bounds.describe(size)
        data = self._bytes_at(self._offset, size)
        self._skip(size)
        return data

    def _member(
        self,
        header: bytes,
        flag: bytes,
        records: list[tuple[bytes, bytes]],
        long_name: bytes,
        long_link: bytes,
    ) -> TarMember:
        (name, mode, uid, gid, size, mtime, _, _, link, magic, _, _, major, minor, prefix, rest) = HEADER.unpack(header)
        name = name.partition(b"\0")[0]
        if magic == b"ustar\x0000" and prefix[0]:
            if rest[8:] == b"tar\0":
                prefix = prefix[:131]  # star stores times after it
            name = prefix.partition(b"\0")[0] + b"/" + name
        pax = dict(records)
        raw_name = long_name or pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
        plain = len(raw_name) <= _SHORT and raw_name.isascii()
        what = f"{self._what}: {raw_name.decode()!r}" if plain else f"{self._what}: {show(raw_name)}"
        kind = _TYPES[flag]
        if kind == "reg" and raw_name.endswith(b"/") and flag != b"S":
            kind = "dir"
        stored = header_number(size, self._what)
        if pax.get(b"size"):
            stored = parse_number(pax[b"size"], what)
        if kind != "reg":
            stored = 0
        if stored < 0 or stored > self._size - self._offset:
            raise InvalidTar(f"{what} has {stored} bytes, and the tar ends {self._size - self._offset} behind its header")
        real_size, extents = self._extents(header, flag, records, pax, stored, what) if kind == "reg" else (0, ())
        holes = real_size - (extents[0].size if len(extents) == 1 else sum(extent.size for extent in extents))
        if holes:
            self._bounds.fill(holes, what, real_size)
        clean = self._name(raw_name, kind)
        link = self._link(kind, long_link or pax.get(b"linkpath") or link.partition(b"\0")[0], what)
        xattrs = _xattrs(pax, what) if pax else ()
        # The part in extended headers has been counted already.
        self._bounds.describe(
            ENTRY + len(clean) + len(link) + ATTRIBUTE * len(xattrs), 1 + clean.count(b"/") + (link.count(b"/") if link else 0)
        )
        return TarMember(
            Entry(
                name=clean,
                type=kind,
                mode=header_number(mode, self._what) & 0o7777,
                uid=self._id(uid, pax.get(b"uid"), what),
                gid=self._id(gid, pax.get(b"gid"), what),
                mtime_ns=parse_time(pax[b"mtime"], what) if pax.get(b"mtime") else header_number(mtime, self._what) * 10**9,
                size=real_size,
                link=link,
                major=self._device(major, what) if kind in ("char", "block") else 0,
                minor=self._device(minor, what) if kind in ("char", "block") else 0,
                xattrs=xattrs,
            ),
            extents,
        )

    def _extents(
        self, header: bytes, flag: bytes, records: list[tuple[bytes, bytes]], pax: dict[bytes, bytes], stored: int, what: str
    ) -> tuple[int, tuple[Extent, ...]]:
        """The file's real size and where its bytes are; afterwards the offset is after them."""
        begin = self._offset
        size = stored
        pieces = None
        if flag == b"S":
            size = header_number(header[483:495], self._what)
            pieces, begin = parse_old_map(header, self._block_at, begin, self._bounds, what)
            self._offset = begin
        elif pax.get(b"GNU.sparse.major") == b"1":
            size = parse_number(pax.get(b"GNU.sparse.realsize", b""), what)
            pieces, begin = parse_data_map(self._block_at, begin, self._bounds, what)
            stored -= begin - self._offset
            self._offset = begin
        elif b"GNU.sparse.map" in pax or b"GNU.sparse.numblocks" in pax:
            size = parse_number(pax.get(b"GNU.sparse.size", b""), what)
            pieces = parse_records_map(records, self._bounds, what)
        if stored < 0 or stored > self._size - begin:
            raise InvalidTar(f"{what}: the sparse map and its data do not fit into the tar")
        self._skip(stored)
        if size < 0:
            raise InvalidTar(f"{what} has the size {size}")
        if pieces is None:
            return size, (Extent(0, begin, size),) if size else ()
        return size, place(pieces, size, begin, stored, what)

    def _skip(self, size: int) -> None:
        # A tar cut behind its last file's data, before the padding, has lost nothing.
        self._offset = min(self._offset + size + -size % BLOCK, self._size)

    def _block_at(self, offset: int) -> bytes:
        at = offset - self._window_at
        if at < 0 or at + BLOCK > len(self._window):
            self._window = self._read_at(offset, min(_WINDOW, self._size - offset))
            self._window_at = offset
            at = 0
            if len(self._window) < BLOCK:
                raise InvalidTar(f"{self._what}: the tar ends inside a block, at {self._size}", hint="It is cut short, or no tar")
        return self._window[at : at + BLOCK]

    def _bytes_at(self, offset: int, size: int) -> bytes:
        at = offset - self._window_at
        data = self._window[at : at + size] if at >= 0 else b""
        if len(data) < size:
            data = self._read_at(offset, size)
            if len(data) < size:
                raise InvalidTar(f"{self._what}: the tar ends inside an extended header", hint="It is cut short")
        return data

    def _shown(self, header: bytes) -> str:
        return show(header[:100].partition(b"\0")[0])

    def _name(self, raw: bytes, kind: EntryType) -> bytes:
        name = clean_name(raw, self._what)
        if not name and kind != "dir":
            raise InvalidTar(f"{self._what}: the root is a {kind}")
        return name

    def _link(self, kind: EntryType, raw: bytes, what: str) -> bytes:
        if kind == "hardlink":
            return clean_name(raw, self._what)
        if kind != "symlink":
            return b""
        if not raw or b"\0" in raw or len(raw) > _MAX_LINK:
            raise InvalidTar(f"{what} is a symbolic link to what is not a path")
        return raw

    def _id(self, field: bytes, text: bytes | None, what: str) -> int:
        if not text:
            return owner_id(header_number(field, self._what))
        number = parse_number(text.removeprefix(b"-"), what)
        return owner_id(-number if text[:1] == b"-" else number)

    def _device(self, field: bytes, what: str) -> int:
        number = header_number(field, self._what)
        if number < 0:
            raise InvalidTar(f"{what} is a device of the number {number}, which there is not")
        return number & _MAX_DEVICE  # as in Go; mknod(2) keeps even fewer bits


def _checksum_right(block: bytes) -> bool:
    field = block[148:156]
    digits = field.strip(b" \0")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        return False
    stored = int(digits, 8)
    if stored == sum(block) - sum(field) + 256:
        return True
    # Some old tars summed signed bytes.
    return stored == sum(memoryview(block).cast("b")) - sum(memoryview(field).cast("b")) + 256


def _xattrs(pax: dict[bytes, bytes], what: str) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for key, value in pax.items():
        if key.startswith(XATTR_PREFIX):
            name = key[len(XATTR_PREFIX) :]
            if not name or len(name) > 255 or b"\0" in name or len(value) > 65536:
                raise InvalidTar(f"{what} has an extended attribute {show(name)} that no kernel would take")
            found.append((name, value))
    return tuple(sorted(found))
