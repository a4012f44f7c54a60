"""Verifies one layer, downloaded whole, against everything that is claimed about it.

An image can be read in two ways. A full pull unpacks the blob's tar; a lazy mount uses the TOC. Nothing in the formats makes the two
agree, so one could pass a security scan and the other be run. Both are read here, and every difference is a problem, reported with
its path.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from lazyfs.errors import InvalidInput, InvalidTar, LazyfsError, show
from lazyfs.format.bounds import Bounds, never
from lazyfs.format.dialect import Dialect
from lazyfs.format.dialects import claim_of, dialect_of
from lazyfs.format.digest import check
from lazyfs.format.entry import OPAQUE_MARKER, TOC_NAME, WHITEOUT_PREFIX, Chunk, Entry, base_of, parent_of, with_owner
from lazyfs.format.manifest import Descriptor
from lazyfs.format.tar import TarMember, read_tar
from lazyfs.format.toc import check_parents
from lazyfs.image.toc_member import toc_in
from lazyfs.layertar.spool import Spool

_STEP: Final = 4 << 20
_SECOND: Final = 10**9


class LayerFindings(NamedTuple):
    """The result for one layer."""

    lazy: bool
    """Whether it has a TOC whose digest is in the manifest."""
    entries: tuple[Entry, ...]
    """The entries that the layer shows: those of the TOC, or of the tar if there is none."""
    chunks: int
    problems: tuple[str, ...]


def verify_layer(spool: Spool, descriptor: Descriptor, check_cancelled: Callable[[], None] = never) -> LayerFindings:
    """Blocking. Compare the TOC of a layer with its tar, and each chunk with both.

    `spool` holds the unpacked layer (blob digest and diff ID have been verified) and its blob.
    """
    what = f"layer {descriptor.digest}"
    try:
        bounds = Bounds(descriptor.size, what, InvalidTar, check_cancelled)
        unpacked = _last_of_each_name(read_tar(spool.read_at, spool.size, descriptor.size, what, bounds=bounds))
        check_parents({name: member.entry for name, member in unpacked.items()}, what, bounds)
    except LazyfsError as error:
        return LayerFindings(False, (), 0, (error.message,))
    dialect = dialect_of(descriptor.annotations)
    if dialect is None:
        return LayerFindings(False, tuple(member.entry for member in unpacked.values()), 0, ())
    try:
        entries = _read_toc(spool, descriptor, what)
    except LazyfsError as error:
        return LayerFindings(False, (), 0, (error.message,))
    problems = [*_compare_trees({entry.name: entry for entry in entries}, unpacked), *_late_whiteouts(unpacked)]
    for entry in entries:
        member = unpacked.get(entry.name)
        if member is not None and member.entry.size == entry.size:
            problems.extend(_compare_content(entry, member, spool, dialect))
    chunks = sum(len(entry.chunks) for entry in entries)
    return LayerFindings(True, entries, chunks, tuple(f"{what}: {problem}" for problem in problems))


def _last_of_each_name(members: Iterator[TarMember]) -> dict[bytes, TarMember]:
    """The result of unpacking the tar: the last entry of each name, with hard links resolved to files."""
    unpacked: dict[bytes, TarMember] = {}
    for member in members:
        entry = with_owner(member.entry)  # as in its TOC
        unpacked.pop(entry.name, None)
        if entry.name == TOC_NAME:
            continue
        target = unpacked.get(entry.link) if entry.type == "hardlink" else None
        if target is not None and target.entry.type == "hardlink":
            entry = msgspec.structs.replace(entry, link=target.entry.link)
        unpacked[entry.name] = TarMember(entry, member.extents)
    return unpacked


def _read_toc(spool: Spool, descriptor: Descriptor, what: str) -> tuple[Entry, ...]:
    blob = spool.blob
    assert blob is not None, "the spool was made without its blob"
    dialect, digest = claim_of(descriptor.annotations, what)
    toc = toc_in(blob, descriptor.size, dialect, what)
    data = toc.document()
    check(data, digest, f"the TOC of {what}")
    return dialect.entries(data, toc.data_end, what, arrived=toc.size)


def _compare_trees(listed: dict[bytes, Entry], unpacked: dict[bytes, TarMember]) -> Iterator[str]:
    for name in listed.keys() - unpacked.keys():
        yield f"{show(name)} is in the TOC and not in the tar"
    for name in unpacked.keys() - listed.keys():
        yield f"{show(name)} is in the tar and not in the TOC"
    for name, entry in listed.items():
        member = unpacked.get(name)
        if member is not None and not base_of(name).startswith(WHITEOUT_PREFIX):
            other = member.entry
            if entry.type == other.type == "hardlink":
                if entry.link != other.link:
                    yield f"{show(name)} has the link {show(entry.link)} in the TOC and {show(other.link)} in the tar"
                elif other.link in unpacked:
                    yield from _compare_link(other, unpacked[other.link].entry)
            else:
                yield from _compare_entries(entry, other)


def _late_whiteouts(unpacked: Iterable[bytes]) -> Iterator[str]:
    """Whiteouts after a name that they hide: unpackers work in the tar's order, so these remove files of the layer itself, or fail."""
    own_names: set[bytes] = set()
    for name in unpacked:
        base = base_of(name)
        if base.startswith(WHITEOUT_PREFIX) and base != OPAQUE_MARKER:
            hidden = name[: len(name) - len(base)] + base[len(WHITEOUT_PREFIX) :]
            if hidden in own_names:
                yield f"{show(name)} comes behind {show(hidden)} in the tar: unpacking removes or refuses it, mounting lazily shows it"
        here = name
        while here not in own_names:
            own_names.add(here)
            here = parent_of(here)


def _compare_link(link: Entry, target: Entry) -> Iterator[str]:
    """Unpacking gives a hard link's metadata to the file; a lazy mount shows the file's own."""
    for field in ("mode", "uid", "gid", "mtime_ns"):
        if getattr(link, field) != getattr(target, field):
            yield f"{show(link.name)} is a hard link whose {field} differs from its target's: unpacking would change the file"
    if not set(link.xattrs) <= set(target.xattrs):
        yield f"{show(link.name)} is a hard link with xattrs that its target has not: unpacking would give them to the file"


def _compare_entries(listed: Entry, unpacked: Entry) -> Iterator[str]:
    for field in ("type", "mode", "uid", "gid", "mtime_ns", "size", "link", "major", "minor", "xattrs"):
        lazily, fully = getattr(listed, field), getattr(unpacked, field)
        # The peers' writers round times to the second.
        if field == "mtime_ns" and lazily % _SECOND == 0 and abs(lazily - fully) < _SECOND:
            continue
        if lazily != fully:
            yield f"{show(listed.name)} has the {field} {show(lazily)} in the TOC and {show(fully)} in the tar"


def _compare_content(entry: Entry, member: TarMember, spool: Spool, dialect: Dialect) -> Iterator[str]:
    """Compare each chunk's bytes in the tar with those that a lazy reader finds, unless both are the same bytes of the blob."""
    gzip = bool(spool.members)
    for chunk in entry.chunks:
        where = f"{show(entry.name)}: the chunk at {chunk.file_offset}"
        start = spool.members.get(chunk.member)
        if gzip and start is None:
            yield f"{where} is said to begin at blob offset {chunk.member}, where no gzip member begins"
            continue
        in_tar = _place_in_tar(member, chunk.file_offset, chunk.size)
        if in_tar is None or _hash(spool, in_tar, chunk.size) != chunk.digest:
            yield f"{where} has other bytes in the tar than its chunkDigest"
        if start is None:
            right = _decoded_hash(spool, chunk, dialect) == chunk.digest
        else:
            right = start + chunk.inner == in_tar or _hash(spool, start + chunk.inner, chunk.size) == chunk.digest
        if not right:
            yield f"{where} has other bytes at its blob offset than its chunkDigest"


def _place_in_tar(member: TarMember, file_offset: int, size: int) -> int | None:
    for extent in member.extents:
        if extent.file_offset <= file_offset and file_offset + size <= extent.file_offset + extent.size:
            return extent.tar_offset + file_offset - extent.file_offset
    return None


def _decoded_hash(spool: Spool, chunk: Chunk, dialect: Dialect) -> bytes:
    """The hash of the chunk as a lazy reader finds it; empty if it finds none."""
    assert spool.blob is not None
    packed = os.pread(spool.blob.fileno(), chunk.member_end - chunk.member, chunk.member)
    try:
        plain = dialect.decode(packed, chunk.inner + chunk.size, "")
    except InvalidInput:
        return b""
    return hashlib.sha256(memoryview(plain)[chunk.inner : chunk.inner + chunk.size]).digest()


def _hash(spool: Spool, offset: int, size: int) -> bytes:
    hashed = hashlib.sha256()
    for step in range(offset, offset + size, _STEP):
        hashed.update(spool.read_at(step, min(_STEP, offset + size - step)))
    return hashed.digest()
