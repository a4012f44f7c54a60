"""JSON that Go's encoding/json reads and msgspec does not: nested up to 10,000 levels, any text, any numbers.

Several times slower than msgspec, so only the few documents that need it come here. msgspec and json recurse and stop at about
1,000 levels; this parser uses neither the C stack nor Python's.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from math import isfinite
from typing import Any, Final, cast

MAX_DEPTH: Final = 10_000
"""The limit of Go's encoding/json."""

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_NUMBER: Final = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: Final = {"n": ("null", None), "t": ("true", True), "f": ("false", False)}
_LARGEST_NUMBER: Final = 400
"""Digits. A longer number becomes a float."""
_BRACKETS: Final = re.compile(rb'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)|([\[\]{}])', re.DOTALL)
"""A string, complete or cut short by the end of the text (else each quote in it would be tried), or a bracket outside strings."""
_ENDS: Final[dict[type, str]] = {dict: "}", list: "]"}


def load(text: str) -> Any:
    """Parse `text`. Half of a surrogate pair becomes U+FFFD. Raises ValueError."""
    open_values: list[tuple[Any, str]] = []
    """The enclosing arrays and objects, outermost first, each with the name of the field being read."""
    here: Any = None
    field = ""
    at = _skip(text, 0)
    while True:
        if text[at : at + 1] in {"{", "["}:
            if len(open_values) == MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            open_values.append((here, field))
            here = {} if text[at] == "{" else []
            value = here
            at = _skip(text, at + 1)
            if text[at : at + 1] != _ENDS[type(here)]:
                field, at = _field(text, at) if isinstance(here, dict) else ("", at)
                continue
            at += 1
            here, field = open_values.pop()
        else:
            value, at = _scalar(text, at)
        # `value` is complete: add it to the enclosing value, which may be complete as well.
        while True:
            at = _skip(text, at)
            if not open_values:
                if at != len(text):
                    raise ValueError("something follows it")
                return value
            if isinstance(here, dict):
                here[field] = value
            else:
                here.append(value)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
                field, at = _field(text, at) if isinstance(here, dict) else ("", at)
                break
            if text[at : at + 1] != _ENDS[type(here)]:
                raise ValueError(f"what stands at {at} belongs to nothing")
            value = here
            at += 1
            here, field = open_values.pop()


def dump(value: Any) -> bytes:
    """Encode a value made of what `load` returns, at any depth. Infinite floats and NaN become null, as in msgspec."""
    parts: list[str] = []
    pending: list[Any] = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, _Text):
            parts.append(found)
        elif isinstance(found, dict):
            pending.append(_Text("}"))
            for number, (name, held) in enumerate(reversed(found.items()), 1 - len(found)):
                pending += [held, _Text(("," if number else "") + json.dumps(name, ensure_ascii=False) + ":")]
            parts.append("{")
        elif isinstance(found, list):
            pending.append(_Text("]"))
            for number, held in enumerate(reversed(found), 1 - len(found)):
                pending += [held, _Text("," if number else "")]
            parts.append("[")
        else:
            is_endless = isinstance(found, float) and not isfinite(found)
            parts.append("null" if is_endless else json.dumps(found, ensure_ascii=False))
    return "".join(parts).encode()


def pruned(data: bytes | bytearray, depth: int) -> bytes:
    """The JSON in `data` with every array and object at level `depth` emptied. Costs about 0.3 µs a byte at worst.

    Only the depth of what is left out is checked. Raises ValueError if that exceeds MAX_DEPTH or brackets do not match.
    """
    kept: list[memoryview] = []
    view = memoryview(data)
    level = begin = 0
    for found in _BRACKETS.finditer(data):
        opens = found[1]
        if opens is None:
            continue
        if opens in b"[{":
            level += 1
            if level > MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            if level == depth:
                kept.append(view[begin : found.end()])
        else:
            if level == depth:
                begin = found.start()
            level -= 1
            if level < 0:
                raise ValueError(f"what ends at {found.start()} has not begun")
    if level:
        raise ValueError("it is cut short")
    kept.append(view[begin:])
    return b"".join(kept)


class _Text(str):
    """A piece of finished JSON among the values still to be encoded."""

    __slots__ = ()


def _skip(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _field(text: str, at: int) -> tuple[str, int]:
    """The name of a field and the position of its value."""
    if text[at : at + 1] != '"':
        raise ValueError(f"what stands at {at} is not a field")
    name, at = _string(text, at)
    at = _skip(text, at)
    if text[at : at + 1] != ":":
        raise ValueError(f"the field before {at} has no value")
    return name, _skip(text, at + 1)


def _string(text: str, at: int) -> tuple[str, int]:
    found, end = cast(tuple[str, int], scanstring(text, at + 1))
    return (found if found.isascii() else found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")), end


def _scalar(text: str, at: int) -> tuple[Any, int]:
    first = text[at : at + 1]
    if first == '"':
        return _string(text, at)
    if first in _WORDS:
        word, value = _WORDS[first]
        if text.startswith(word, at):
            return value, at + len(word)
    found = _NUMBER.match(text, at)
    if not found:
        raise ValueError(f"what stands at {at} is not a value")
    is_whole = found[2] is None and found[3] is None and len(found[1]) <= _LARGEST_NUMBER
    return (int(found[1]) if is_whole else float(found[0])), found.end()
