"""JSON from other programs, read as Go's encoding/json reads it: containerd, skopeo, umoci and registries are written in Go.

- `null` means that the field is absent.
- Field names are matched without regard to case; of two fields with the same name, the last counts.
- Invalid UTF-8 and half of a surrogate pair become U+FFFD. Numbers that lazyfs ignores may have any size.
- Values may be nested 10,000 levels deep (deep_json.py).

A byte order mark, and anything after the end of the document, are errors in Go and here.

Memory: `decode` builds Python objects, at most some 120 bytes for each of MAX_VALUES values and the text itself. A TOC has
millions of values; it is decoded into structs of its own (toc.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from lazyfs.format.deep_json import dump, load

MAX_VALUES: Final = 500_000
"""Values in one document, approximately. The largest real configs have thousands."""

T = TypeVar("T")


def decode(data: bytes | str) -> Any:
    """Decode `data`: objects as dicts, `null` as None. Raises msgspec.DecodeError for what Go refuses as well."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise msgspec.DecodeError(f"it has more than {MAX_VALUES} values")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as refusal:
        try:
            return load(raw.decode("utf-8", "replace"))
        except ValueError as error:
            raise msgspec.DecodeError(str(error if isinstance(refusal, RecursionError) else refusal)) from None


def encode(value: Any) -> bytes:
    """Encode a value made of what `decode` returns. Infinite floats and NaN become null."""
    try:
        return msgspec.json.encode(value)
    except RecursionError:
        return dump(value)


def decode_as(data: bytes | str, kind: type[T]) -> T:
    """Decode `data` as a `kind`; a field that is `null` gets its default. Raises msgspec.DecodeError."""
    return msgspec.convert(drop_nulls(decode(data)), kind)


def drop_nulls(value: Any) -> Any:
    """Remove the fields that are None, at any depth, from `value`, which `decode` has just returned. Changes it in place."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, dict):
            for name in [name for name, held in found.items() if held is None]:
                del found[name]
            pending += found.values()
        elif isinstance(found, list):
            pending += found
    return value


def fields(raw: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The fields of the object `raw` whose names match `names`, under exactly those names. A field that is None is absent."""
    known = {name.casefold(): name for name in names}
    found: dict[str, Any] = {}
    for spelled, value in raw.items():
        name = known.get(spelled.casefold())
        if name is None:
            continue
        if value is None:
            found.pop(name, None)
        else:
            found[name] = value
    return found


def replaced(raw: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The object `raw` with its fields replaced by those of `new`, whatever their case in `raw`. All others stay as they are."""
    spelled = {name.casefold(): name for name in new}
    kept = {spelled.get(name.casefold(), name): value for name, value in raw.items()}
    return {**kept, **new}
