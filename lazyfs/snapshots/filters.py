"""The filters with which containerd lists snapshots.

    name==NAME                          parent!=""                  kind==committed
    labels."containerd.io/snapshot.ref"==sha256:…,parent=="k8s.io/7/sha256:…"
    labels.x                            a snapshot with that label

Regular expressions (`name~=/extract-[0-9]+/`) are refused. containerd matches them in its own database, so only a client that uses this
socket directly would need them.

A comma is "and"; of several filters any may match; no filter at all matches everything. Source: containerd, pkg/filters
(grammar, quotes, and what an absent field compares to) and core/snapshots/storage/bolt.go (fields).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from lazyfs.errors import BadSnapshot, show
from lazyfs.snapshots.snapshot import Snapshot

Operator = Literal["==", "!="]

_QUOTES: Final = frozenset('"/|')
"""`/` and `|` quote only regular expressions, which are refused."""
_OPERATORS: Final = frozenset("=!~")
_FIELD: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_HEXADECIMAL: Final = {"x": 2, "u": 4, "U": 8}


class _Selector(NamedTuple):
    path: tuple[str, ...]
    operator: Operator | None
    """None: the field must exist."""
    value: str = ""

    def matches(self, snapshot: Snapshot) -> bool:
        found = _field(snapshot, self.path)
        if self.operator == "!=":
            return (found or "") != self.value
        return found is not None and (not self.operator or found == self.value)


class Filter:
    """Several filters: a snapshot matches if one of them does."""

    def __init__(self, filters: Sequence[str]) -> None:
        """Raises BadSnapshot for an invalid filter; the message names it and the position of the error."""
        self._any = tuple(_Parser(text).selectors() for text in filters)

    def matches(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot matches."""
        return not self._any or any(all(each.matches(snapshot) for each in selectors) for selectors in self._any)


def _field(snapshot: Snapshot, path: tuple[str, ...]) -> str | None:
    match path[0]:
        case "name":
            return snapshot.key
        case "parent":
            return snapshot.parent
        case "kind":
            return snapshot.kind
        case "labels":
            return snapshot.labels.get(".".join(path[1:]))
        case _:
            return None


class _Parser:
    """Parses one filter. Blanks are skipped before a field, an operator and a value only, as in containerd."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> tuple[_Selector, ...]:
        if not self._text:
            return ()
        found = [self._selector()]
        while self._at < len(self._text):
            if self._peek() != ",":
                raise self._error("expected a comma or the end")
            self._at += 1
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._peek() == ".":
            self._at += 1
            path.append(self._field())
        if self._peek() in {",", ""}:
            return _Selector(tuple(path), None)
        operator = self._operator()
        self._skip_blanks()
        return _Selector(tuple(path), operator, self._value())

    def _field(self) -> str:
        self._skip_blanks()
        if self._peek() in _QUOTES:
            return self._quoted()
        start = self._at
        while self._peek() in _FIELD:
            self._at += 1
        if self._at == start:
            raise self._error("expected a field, or one in quotes")
        return self._text[start : self._at]

    def _operator(self) -> Operator:
        self._skip_blanks()
        start = self._at
        while self._peek() in _OPERATORS:
            self._at += 1
        match self._text[start : self._at]:
            case "==" | "!=" as operator:
                return operator
            case "~=":
                raise self._error("regular expressions (~=) are not supported; use == or !=", start)
            case _:
                raise self._error("expected an operator: == !=", start)

    def _value(self) -> str:
        start = self._at
        if self._peek() in _QUOTES:
            return self._quoted()
        if self._peek() in {".", ","} | _OPERATORS:
            raise self._error("expected a value, or one in quotes")
        while self._peek() != "," and _is_visible(self._peek()):
            self._at += 1
        if self._at == start:
            raise self._error("expected a value, or one in quotes")
        return self._text[start : self._at]

    def _quoted(self) -> str:
        start, quote = self._at, self._next()
        if quote != '"':
            raise self._error('quotes are " here', start)
        # Bytes, because \xff is one byte: the result may not be text, and then matches nothing.
        found = bytearray()
        while (character := self._next()) != quote:
            if character in {"", "\n"}:
                raise self._error("the quote has no end", start)
            found += self._escaped(quote) if character == "\\" else character.encode("utf-8", "surrogatepass")
        return found.decode("utf-8", "surrogateescape")

    def _escaped(self, quote: str) -> bytes:
        start, character = self._at - 1, self._next()
        if character == quote:
            return quote.encode()
        if character in _ESCAPES:
            return _ESCAPES[character].encode()
        if character in _HEXADECIMAL:
            number = self._number(_HEXADECIMAL[character], 16, start)
            if character == "x":
                return bytes((number,))
            if number > 0x10FFFF:
                raise self._error("there is no such character", start)
            return ("\ufffd" if 0xD800 <= number < 0xE000 else chr(number)).encode()
        if character and character in "01234567":
            self._at -= 1
            number = self._number(3, 8, start)
            if number > 0xFF:
                raise self._error("there is no such byte", start)
            return bytes((number,))
        raise self._error("there is no such escape", start)

    def _number(self, digits: int, base: int, start: int) -> int:
        text = self._text[self._at : self._at + digits]
        if len(text) < digits or not all(each in "0123456789abcdefABCDEF"[: 22 if base == 16 else base] for each in text):
            raise self._error(f"an escape of {digits} digits is cut short", start)
        self._at += digits
        return int(text, base)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _skip_blanks(self) -> None:
        while _is_blank(self._peek()):
            self._at += 1

    def _error(self, why: str, at: int | None = None) -> BadSnapshot:
        at = min(self._at if at is None else at, len(self._text))
        return BadSnapshot(f"the filter {_shown(self._text)} cannot be understood at character {at + 1}: {why}")


def _is_blank(character: str) -> bool:
    return bool(character) and (character in "\t\n\v\f\r \x85" or unicodedata.category(character)[0] == "Z")


def _is_visible(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LMNPS"


def _shown(text: str) -> str:
    return show(text, 300)
