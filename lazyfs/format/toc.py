"""Reads a TOC: the JSON index that makes a layer's blob addressable by file and chunk.

Source: containerd/stargz-snapshotter, docs/estargz.md and estargz/types.go. The bytes have been verified against the manifest's
`toc.digest`, but that proves only that the image's author wrote them, and the author may be hostile. So counts, sizes, offsets and
names are all checked before use. What comes out is clean.

Entries written by lazyfs's converter may carry keys that other readers ignore: `lazyfsName`, `lazyfsLinkName` and
`lazyfsXattrKeys` hold, in base64, raw bytes that are not UTF-8, for which the JSON has a printable stand-in;
`lazyfsMtime` holds nanoseconds that RFC 3339 cannot express.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, get_args

import msgspec

from lazyfs.errors import InvalidToc, show
from lazyfs.format.bounds import ATTRIBUTE, ENTRY, Bounds, ImageBounds, never
from lazyfs.format.entry import KEPT_OWNER, WHITEOUT_PREFIX, Chunk, Entry, EntryType, owner_id
from lazyfs.format.hidden import HiddenFiles
from lazyfs.format.member import MAX_RATIO
from lazyfs.format.toc_chunks import Chunks
from lazyfs.format.toc_raw import RawEntry, decode_entries, decode_keys, decode_xattrs, no_toc
from lazyfs.format.whiteout import LeftOut, name_kind, whiteout

MAX_CHUNK_SIZE: Final = 64 << 20
"""A chunk is held in memory while it is verified; the format's default is 4 MiB."""
MAX_NAME: Final = 4095
"""PATH_MAX: no runtime could unpack a longer name. Bounds depth as well."""

_TYPES: Final[dict[str, EntryType]] = {kind: kind for kind in get_args(EntryType)}
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)\Z")
_EPOCH: Final = datetime(1970, 1, 1)


def parse_toc(
    data: bytes | bytearray,
    toc_offset: int,
    what: str,
    left_out: LeftOut | None = None,
    *,
    arrived: int | None = None,
    accepted: bool = False,
    check_cancelled: Callable[[], None] = never,
    image: ImageBounds | None = None,
    ratio: int = MAX_RATIO,
) -> tuple[Entry, ...]:
    """The entries of a TOC, in its order, clean and complete.

    `data` is the JSON; `toc_offset` the blob offset where the last chunk ends (TocLocation.data_end); `what` names the layer in
    errors. Of duplicate names the last wins. Parents without an entry are not added here. Entries that are never shown
    (format/whiteout.py) are counted in `left_out`; the first hard link to one becomes that file.

    `arrived` is the size of the TOC's compressed member, which bounds what its entries may cost (format/bounds.py); without it, the
    size of `data`. `accepted` is for a TOC that was parsed before, perhaps by an earlier version with fewer bounds, and may be mounted:
    the bounds of format/bounds.py are not applied to it. `image` is the account of the layer's image. `ratio` is the
    dialect's. Raises InvalidToc, and what `check_cancelled` raises.
    """
    bounds = Bounds(
        len(data) if arrived is None else arrived, what, InvalidToc, check_cancelled, enforced=not accepted, image=image
    )
    raw = decode_entries(data, bounds, what)
    names: dict[bytes, Entry] = {}
    hidden: HiddenFiles | None = None  # few layers have any
    times: dict[str, int] = {}
    files = Chunks(toc_offset, what, enforced=not accepted, ratio=ratio)
    heads = 0
    following = next(raw, None)
    if following is not None and following.type == "chunk":
        raise InvalidToc(f"{what}: the TOC begins with a chunk of no file")
    while following is not None:
        head = following
        more: list[RawEntry] = []
        for following in raw:
            if following.type != "chunk":
                break
            bounds.describe(ENTRY)
            more.append(following)
        else:
            following = None
        entry = _entry(head, more, files, times, bounds, what)
        kind = name_kind(entry.name) if WHITEOUT_PREFIX in entry.name else "shown"
        if kind == "shown":
            _place(entry, names, hidden, what)
        elif kind == "whiteout":
            names.pop(entry.name, None)
            names[entry.name] = whiteout(entry)
        else:
            hidden = hidden or HiddenFiles()
            hidden.add(entry, target=names.get(entry.link) if entry.type == "hardlink" else None)
            if left_out is not None:
                left_out.add(entry.name, kind)
        heads += 1
    files.finish()
    check_parents(names, what, bounds)
    if len(names) < heads:
        _check_links(names, what)
    bounds.settle()
    return tuple(names.values())


def _entry(head: RawEntry, more: list[RawEntry], files: Chunks, times: dict[str, int], bounds: Bounds, what: str) -> Entry:
    kind = _TYPES.get(head.type)
    if kind is None:
        raise InvalidToc(f"{what}: {show(head.name)} is of the unknown type {show(head.type)}")
    name = clean_name(_raw(head.name, head.lazyfs_name, what), what)
    if more and kind != "reg":
        raise InvalidToc(f"{what}: {show(head.name)} is not a regular file and yet has chunks")
    if not name and kind != "dir":
        raise InvalidToc(f"{what}: the root is a {kind}")
    if not (0 <= head.dev_major < 1 << 32 and 0 <= head.dev_minor < 1 << 32):
        raise InvalidToc(f"{what}: {show(head.name)} is the device {show(head.dev_major)}:{show(head.dev_minor)}, which is none")
    if (head.uid | head.gid | head.mode) >> 63 not in (0, -1):  # readers in Go have no larger ones
        raise InvalidToc(f"{what}: {show(head.name)} has an owner or a mode of more than 64 bits")
    link = b""
    if kind in ("symlink", "hardlink"):
        link = _raw(head.link_name, head.lazyfs_link_name, what)
        if kind == "hardlink":
            link = clean_name(link, what)
        elif not link or b"\0" in link or len(link) > 4095:
            raise InvalidToc(f"{what}: {show(head.name)} is a symbolic link to what is not a path")
    # Before the chunks and attributes are made. Each component of a name is a step for a path walk.
    bounds.describe(ENTRY + len(name) + len(link), 1 + name.count(b"/") + link.count(b"/") if link else 1 + name.count(b"/"))
    return Entry(
        name=name,
        type=kind,
        mode=head.mode & 0o7777,
        uid=_owner(head.uid),
        gid=_owner(head.gid),
        mtime_ns=_mtime(head, times, what),
        size=head.size if kind == "reg" else 0,
        link=link,
        major=head.dev_major,
        minor=head.dev_minor,
        xattrs=_xattrs(head, bounds, what) if head.xattrs else (),
        chunks=_chunks(head, more, files, what) if kind == "reg" else (),
    )


def _owner(number: int) -> int:
    """A TOC is not unpacked onto layers below, so an owner that its tar leaves unchanged becomes root."""
    owner = owner_id(number)
    return 0 if owner == KEPT_OWNER else owner


def _raw(text: str, raw: bytes | None, what: str) -> bytes:
    """The bytes that `text` stands for. Refuses a stand-in for valid UTF-8: other readers would see another name."""
    if raw is None:
        return text.encode()
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw
    raise InvalidToc(f"{what}: {show(text)} stands in for {show(raw)}, which needs no stand-in")


def clean_name(raw: bytes, what: str) -> bytes:
    """`raw` as a clean, relative name, `b""` for the root. Raises InvalidToc for names that no layer may hold."""
    if raw.startswith(b"/"):
        raise InvalidToc(f"{what}: the name {show(raw)} is absolute")
    if b"\0" in raw:
        raise InvalidToc(f"{what}: the name {show(raw)} holds a NUL")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidToc(f"{what}: the name {show(raw)} climbs out with '..'")
    if len(raw) > 255 and any(len(part) > 255 for part in parts):
        raise InvalidToc(f"{what}: the name {show(raw)} has a component of more than 255 bytes")
    name = b"/".join(parts)
    if len(name) > MAX_NAME:
        raise InvalidToc(f"{what}: the name {show(raw)} has more than {MAX_NAME} bytes")
    return name


def _chunks(head: RawEntry, more: list[RawEntry], files: Chunks, what: str) -> tuple[Chunk, ...]:
    size = head.size
    if not 0 <= size < 1 << 62:
        raise InvalidToc(f"{what}: {show(head.name)} has the size {size}")
    if size == 0:
        if more:
            raise InvalidToc(f"{what}: {show(head.name)} is empty and yet has chunks")
        return ()
    chunks = []
    expected = 0
    for raw in (head, *more):
        if raw.chunk_offset != expected:
            raise InvalidToc(f"{what}: {show(head.name)} has a chunk at {raw.chunk_offset} where {expected} comes next")
        length = raw.chunk_size or size - expected
        if not 0 < length <= size - expected:
            raise InvalidToc(f"{what}: {show(head.name)} has a chunk of {length} bytes at {expected} of {size}")
        if length > MAX_CHUNK_SIZE:
            raise InvalidToc(f"{what}: {show(head.name)} has a chunk of {length} bytes, more than {MAX_CHUNK_SIZE}")
        inner = raw.inner_offset
        if not 0 <= inner <= MAX_CHUNK_SIZE - length:
            raise InvalidToc(f"{what}: {show(head.name)} has the innerOffset {inner}")
        digest = raw.chunk_digest or (head.digest if not more and raw is head else "")
        chunks.append(files.make(expected, length, _raw_digest(digest, head.name, what), raw.offset, inner, head.name))
        expected += length
    if expected != size:
        raise InvalidToc(f"{what}: the chunks of {show(head.name)} end at {expected} of {size} bytes")
    return tuple(chunks)


def _raw_digest(text: str, name: str, what: str) -> bytes:
    algorithm, _, digits = text.partition(":")
    if algorithm == "sha256" and len(digits) == 64:
        try:
            return bytes.fromhex(digits)
        except ValueError:
            pass
    raise InvalidToc(f"{what}: {show(name)} has a chunk without a sha256 digest (chunkDigest {show(text)})")


def _xattrs(head: RawEntry, bounds: Bounds, what: str) -> tuple[tuple[bytes, bytes], ...]:
    # Each attribute has a colon: counted before they become objects.
    bounds.describe(ATTRIBUTE * bytes(head.xattrs).count(b":"))
    try:
        xattrs = decode_xattrs(head.xattrs) or {}
        raw_keys = decode_keys(head.lazyfs_xattr_keys) or {} if head.lazyfs_xattr_keys else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_toc(error, what) from None
    found: dict[bytes, bytes] = {}
    for key, value in xattrs.items():
        raw_key = _raw(key, raw_keys.get(key), what)
        if not raw_key or b"\0" in raw_key or len(raw_key) > 255 or len(value or b"") > 65536:
            raise InvalidToc(f"{what}: {show(head.name)} has an extended attribute {show(key)} that no kernel would take")
        found[raw_key] = value or b""
        bounds.describe(len(raw_key) + len(found[raw_key]))
    return tuple(sorted(found.items()))


def _mtime(head: RawEntry, times: dict[str, int], what: str) -> int:
    if head.lazyfs_mtime:
        if not re.fullmatch(r"-?\d{1,30}", head.lazyfs_mtime, re.ASCII):
            raise InvalidToc(f"{what}: {show(head.name)} has the lazyfsMtime {show(head.lazyfs_mtime)}")
        return max(-(2**63) * 10**9, min(int(head.lazyfs_mtime), (2**63 - 1) * 10**9))
    text = head.modtime
    if not text:
        return 0
    known = times.get(text)
    if known is None:
        known = times[text] = _parse_time(text, head.name, what)
    return known


def _parse_time(text: str, name: str, what: str) -> int:
    match = _TIME.match(text)
    try:
        if not match or not text.isascii():
            raise ValueError
        moment = datetime.fromisoformat(match[1]) - _EPOCH
    except ValueError:
        raise InvalidToc(f"{what}: {show(name)} has the modtime {show(text)}, which is not an RFC 3339 time") from None
    seconds = moment.days * 86400 + moment.seconds
    if match[3] != "Z":
        away = int(match[3][1:3]) * 3600 + int(match[3][4:]) * 60
        seconds += -away if match[3][0] == "+" else away
    return seconds * 10**9 + int((match[2] or "").ljust(9, "0"))


def _place(entry: Entry, names: dict[bytes, Entry], hidden: HiddenFiles | None, what: str) -> None:
    earlier = names.pop(entry.name, None)
    if earlier is not None and (earlier.type == "dir") != (entry.type == "dir"):
        raise InvalidToc(
            f"{what}: {show(entry.name)} is both a directory and a {earlier.type if entry.type == 'dir' else entry.type}"
        )
    if hidden is not None:
        found = hidden.linked(entry) if entry.type == "hardlink" and entry.link not in names else None
        if found is None:
            hidden.replaced(entry.name)
        else:
            entry = found[0]
    if entry.type == "hardlink":
        target = names.get(entry.link)
        if target is not None and target.type == "hardlink":
            # Resolved at once, so that no later entry of the same name can make a cycle.
            target = names.get(target.link)
            entry = msgspec.structs.replace(entry, link=target.name) if target else entry
        if target is None or target.type == "dir":
            raise _no_earlier_file(entry, what)
    names[entry.name] = entry


def check_parents(names: Mapping[bytes, Entry], what: str, bounds: Bounds) -> None:
    """Raise InvalidToc if a layer's names need a file to be a directory, or imply too many directories."""
    good: set[bytes] = {b""}
    for name in names:
        parent = name.rpartition(b"/")[0]
        while parent not in good:
            held = names.get(parent)
            if held is None:
                # A few names can imply thousands of directories each, and each becomes a node of the tree.
                if not bounds.has_room(ENTRY + len(parent)):
                    raise InvalidToc(f"{what}: it implies more directories than the {bounds.limit} bytes of its names may hold")
                bounds.describe(ENTRY + len(parent))
            elif held.type != "dir":
                raise InvalidToc(f"{what}: {show(parent)} is both a directory and a {held.type}")
            good.add(parent)
            parent = parent.rpartition(b"/")[0]


def _check_links(names: dict[bytes, Entry], what: str) -> None:
    """A duplicate name takes its last position, so a link between the two would point forward."""
    earlier: set[bytes] = set()
    for name, entry in names.items():
        if entry.type == "hardlink" and entry.link not in earlier:
            raise _no_earlier_file(entry, what)
        earlier.add(name)


def _no_earlier_file(link: Entry, what: str) -> InvalidToc:
    return InvalidToc(f"{what}: {show(link.name)} is a hard link to {show(link.link)}, which is not an earlier file of its layer")
