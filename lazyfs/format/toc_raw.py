"""The JSON of a TOC, entry by entry: counted before it becomes objects, and not yet checked (toc.py does that).

It is read as Go's encoding/json reads it, because the format's other readers are written in Go: a null field is absent, and the
case of field names does not matter. An unknown field may be nested 10,000 levels deep, in a TOC of up to 8 MiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from lazyfs.errors import InvalidToc
from lazyfs.format.bounds import ATTRIBUTE, ENTRY, Bounds
from lazyfs.format.deep_json import pruned

MAX_TOC_SIZE: Final = 256 << 20
MAX_ENTRIES: Final = 2_000_000
_MAX_ENTRY: Final = 4 << 20
"""Bytes of JSON. A name or attribute is at most 64 KiB, which can be checked only after decoding."""
_MAX_DEEP: Final = 8 << 20
"""Bytes of a TOC that is read although msgspec, which recurses, refuses its depth: at worst three seconds of CPU time."""
_DEPTH: Final = 100
"""Levels that are kept of such a TOC. The format itself needs four."""

_NONE: Final = msgspec.Raw()


class RawEntry(msgspec.Struct, gc=False, rename="camel", forbid_unknown_fields=True):
    """The fields of the format. An unknown field may be one of these in another case: see `_respelled`."""

    name: str
    type: str
    size: int = 0
    modtime: str = ""
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    offset: int = 0
    inner_offset: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: msgspec.Raw = _NONE
    digest: str = ""
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""
    lazyfs_name: bytes | None = None
    lazyfs_link_name: bytes | None = None
    lazyfs_xattr_keys: msgspec.Raw = _NONE
    lazyfs_mtime: str = ""
    user_name: msgspec.Raw = _NONE
    group_name: msgspec.Raw = _NONE
    num_link: msgspec.Raw = msgspec.field(default=_NONE, name="NumLink")


class _RawToc(msgspec.Struct, gc=False):
    version: int
    entries: list[msgspec.Raw]


_decode_toc = msgspec.json.Decoder(_RawToc).decode
_decode_entry = msgspec.json.Decoder(RawEntry).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
decode_xattrs = msgspec.json.Decoder(dict[str, bytes | None] | None).decode
decode_keys = msgspec.json.Decoder(dict[str, bytes] | None).decode


_FIELDS: Final = {name.casefold(): name for name in RawEntry.__struct_encode_fields__}
_TOP: Final = re.compile(rb'"(?:version|entries)"(?=\s*:)', re.IGNORECASE)


def decode_entries(data: bytes | bytearray, bounds: Bounds, what: str) -> Iterator[RawEntry]:
    """Yield the entries one by one, so that the text is in memory once and never as strings all at a time."""
    if len(data) > min(MAX_TOC_SIZE, bounds.limit):
        raise InvalidToc(f"{what}: the TOC has {len(data)} bytes, more than {min(MAX_TOC_SIZE, bounds.limit)}")
    # Before the text becomes objects. An entry is an object with at most two more inside it, and has less than 16 fields.
    entries = min(bounds.limit // ENTRY, MAX_ENTRIES)
    objects = data.count(b"{") - 1
    if objects > 3 * entries or data.count(b",") > 16 * entries:
        most = MAX_ENTRIES if objects > MAX_ENTRIES else entries
        raise InvalidToc(
            f"{what}: the TOC has about {objects} entries, more than {most} entries, the limit for one that came in"
            f" {bounds.arrived} bytes"
        )
    try:
        try:
            toc = _decode_top(data)
        except RecursionError:
            if len(data) > _MAX_DEEP:
                raise
            toc = _decode_top(pruned(data, _DEPTH))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise no_toc(error, what) from None
    if toc.version != 1:
        raise InvalidToc(f"{what}: the TOC has version {toc.version}, and only version 1 is known")
    if len(toc.entries) > MAX_ENTRIES:
        raise InvalidToc(f"{what}: the TOC has {len(toc.entries)} entries, more than {MAX_ENTRIES}")
    return _decoded(toc.entries, bounds, what)


def _decode_top(data: bytes | bytearray) -> _RawToc:
    try:
        return _decode_toc(data)
    except msgspec.ValidationError:
        return _decode_toc(_TOP.sub(lambda found: found[0].lower(), data))


def _decoded(entries: Iterable[msgspec.Raw], bounds: Bounds, what: str) -> Iterator[RawEntry]:
    for raw in entries:
        if len(raw) > _MAX_ENTRY:
            raise InvalidToc(f"{what}: the TOC has an entry of {len(raw)} bytes, more than {_MAX_ENTRY}")
        try:
            try:
                yield _decode_entry(raw)
            except msgspec.ValidationError:
                # Before its fields become objects.
                if not bounds.has_room(ATTRIBUTE * bytes(raw).count(b":")):
                    raise bounds.too_large() from None
                yield _decode_entry(_respelled(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise no_toc(error, what) from None


def _respelled(raw: msgspec.Raw) -> bytes:
    """An entry with the format's own field names. For Go, and so for the other readers, a null field is absent and the case of names
    does not matter; of two fields with the same name, the last counts."""
    found: dict[str, msgspec.Raw] = {}
    for spelled, value in _decode_fields(raw).items():
        name = _FIELDS.get(spelled.casefold())
        if name is not None and bytes(value) != b"null":
            found[name] = value
    return msgspec.json.encode(found)


def no_toc(error: Exception, what: str) -> InvalidToc:
    """The error for JSON that the decoder refuses."""
    return InvalidToc(f"{what}: the TOC is not the JSON that the format asks for ({error})")
