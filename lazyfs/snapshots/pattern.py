r"""Regular expressions for filters, in time that grows with the length of the text and of nothing else.

containerd's are RE2: no expression takes long. Python's `re` goes back and tries again, `(a|a)*b` for years, holds the
interpreter's lock meanwhile, and with it all of lazyfsd. So this follows all ways at once, a character at a time (Thompson's
construction). There is only "found" or "not found": no groups to tell, and so greedy and lazy are one.

    . [a-z] [^a-z] \d \w \s \D \W \S     one character; `.` is any but a line's end; the classes are ASCII's, as in RE2
    \. \n \t \x41                         that character
    x* x+ x? x{2} x{2,} x{2,5}             and the lazy forms, x*? …
    xy  x|y  (x) (?:x)  ^ $                ^ and $ are the text's ends

All else of RE2 (flags, \b, \pL, [[:alpha:]]) is refused in words, never misread.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from lazyfs.errors import BadSnapshot

_MAX_LENGTH: Final = 512
_MAX_DEPTH: Final = 32
_MAX_STATES: Final = 1000
_MAX_COUNT: Final = 1000
"""As in RE2."""

Ranges = tuple[tuple[str, str], ...]

_DIGITS: Final[Ranges] = (("0", "9"),)
_WORD: Final[Ranges] = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_BLANKS: Final[Ranges] = (("\t", "\n"), ("\f", "\r"), (" ", " "))
_CLASSES: Final = {"d": _DIGITS, "w": _WORD, "s": _BLANKS}
_ESCAPES: Final = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_COUNT: Final = re.compile(r"\{([0-9]+)(,([0-9]+)?)?\}")
_HEXADECIMAL: Final = re.compile(r"[0-9a-fA-F]{2}")
_LAST: Final = 0x10FFFF


class _Character(NamedTuple):
    ranges: Ranges


class _End(NamedTuple):
    last: bool


class _Sequence(NamedTuple):
    parts: tuple[_Node, ...]


class _Choice(NamedTuple):
    ways: tuple[_Node, ...]


class _Repeat(NamedTuple):
    part: _Node
    least: int
    most: int | None


_Node = _Character | _End | _Sequence | _Choice | _Repeat


class _State(NamedTuple):
    """One step: over a character of `ranges`, past an end of the text, or (neither) for nothing; then to all of `then`."""

    then: tuple[int, ...]
    ranges: Ranges | None = None
    end: _End | None = None


class Pattern:
    """An expression, understood."""

    def __init__(self, text: str) -> None:
        """Raises BadSnapshot for what is none, for what RE2 has and this has not, and for what is too large."""
        if len(text) > _MAX_LENGTH:
            raise BadSnapshot(f"a regular expression of more than {_MAX_LENGTH} characters")
        self._states: list[_State] = [_State(())]
        self._start = self._compile(_Parser(text).whole(), 0)

    def found_in(self, text: str) -> bool:
        """Whether any part of `text` matches."""
        current: set[int] = set()
        for at, character in enumerate(text):
            self._enter(current, self._start, at, len(text))
            if 0 in current:
                return True
            following: set[int] = set()
            for number in current:
                state = self._states[number]
                if state.ranges is not None and any(first <= character <= last for first, last in state.ranges):
                    self._enter(following, state.then[0], at + 1, len(text))
            current = following
        self._enter(current, self._start, len(text), len(text))
        return 0 in current

    def _enter(self, into: set[int], number: int, at: int, length: int) -> None:
        pending = [number]
        while pending:
            number = pending.pop()
            if number in into:
                continue
            into.add(number)
            state = self._states[number]
            if state.ranges is None and (state.end is None or at == (length if state.end.last else 0)):
                pending += state.then

    def _compile(self, node: _Node, then: int) -> int:
        """The number of the state in which `node` begins, where `then` follows it."""
        match node:
            case _Character(ranges):
                return self._add(_State((then,), ranges))
            case _End():
                return self._add(_State((then,), end=node))
            case _Sequence(parts):
                for part in reversed(parts):
                    then = self._compile(part, then)
                return then
            case _Choice(ways):
                return self._add(_State(tuple(self._compile(way, then) for way in ways)))
            case _Repeat(part, least, most):
                if most is None:
                    loop = self._add(_State(()))
                    self._states[loop] = _State((self._compile(part, loop), then))
                    then = loop
                else:
                    end = then
                    for _ in range(most - least):
                        then = self._add(_State((self._compile(part, then), end)))
                for _ in range(least):
                    before, then = then, self._compile(part, then)
                    if then == before:
                        break  # of nothing, any number is nothing: ((){1000}){1000} makes no state that would be counted
                return then

    def _add(self, state: _State) -> int:
        if len(self._states) == _MAX_STATES:
            raise BadSnapshot("a regular expression that is too large once its repetitions are written out")
        self._states.append(state)
        return len(self._states) - 1


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> _Node:
        node = self._choice(0)
        if self._at < len(self._text):
            raise self._error("a ) without its (")
        return node

    def _choice(self, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise self._error("groups too deep")
        ways = [self._sequence(depth)]
        while self._accept("|"):
            ways.append(self._sequence(depth))
        return ways[0] if len(ways) == 1 else _Choice(tuple(ways))

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._single(depth)))
        return _Sequence(tuple(parts))

    def _repeated(self, node: _Node) -> _Node:
        bounds = self._bounds()
        if bounds is None:
            return node
        least, most = bounds
        if least > _MAX_COUNT or (most is not None and (most < least or most > _MAX_COUNT)):
            raise self._error("a repetition that counts from more to fewer, or too far")
        self._accept("?")
        if self._bounds() is not None:
            raise self._error("a repetition of a repetition")
        return _Repeat(node, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        if self._accept("*"):
            return 0, None
        if self._accept("+"):
            return 1, None
        if self._accept("?"):
            return 0, 1
        found = _COUNT.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        least = int(found[1])
        return least, least if not found[2] else int(found[3]) if found[3] else None

    def _single(self, depth: int) -> _Node:
        if self._bounds() is not None:
            raise self._error("nothing to repeat")
        character = self._next()
        match character:
            case "(":
                if self._accept("?") and not self._accept(":"):
                    raise self._error("flags and names of groups are not supported")
                node = self._choice(depth + 1)
                if not self._accept(")"):
                    raise self._error("a ( without its )")
                return node
            case "[":
                return _Character(self._class())
            case ".":
                return _Character(_others((("\n", "\n"),)))
            case "^":
                return _End(last=False)
            case "$":
                return _End(last=True)
            case "\\":
                return _Character(self._escaped())
            case _:
                return _Character(((character, character),))

    def _class(self) -> Ranges:
        excluded = self._accept("^")
        found = self._span()  # a ] that comes first stands for itself
        while not self._accept("]"):
            found += self._span()
        return _others(found) if excluded else found

    def _span(self) -> Ranges:
        if self._text.startswith("[:", self._at):
            raise self._error("named classes are not supported")
        first = self._member()
        if self._text[self._at : self._at + 1] != "-" or self._text[self._at + 1 : self._at + 2] in {"]", ""}:
            return first
        self._at += 1
        last = self._member()
        if len(first) > 1 or len(last) > 1 or first[0][0] != first[0][1] or last[0][0] != last[0][1] or first > last:
            raise self._error("a range that has no beginning or no end")
        return ((first[0][0], last[0][0]),)

    def _member(self) -> Ranges:
        character = self._next()
        return self._escaped() if character == "\\" else ((character, character),)

    def _escaped(self) -> Ranges:
        character = self._next()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.lower() in _CLASSES:
            return _others(_CLASSES[character.lower()])
        if character == "x" and _HEXADECIMAL.match(self._text, self._at):
            self._at += 2
            character = chr(int(self._text[self._at - 2 : self._at], 16))
        elif character in _ESCAPES:
            character = _ESCAPES[character]
        elif character.isalnum() or not character.isascii():
            raise self._error(f"\\{character} is not supported")
        return ((character, character),)

    def _next(self) -> str:
        if self._at == len(self._text):
            raise self._error("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _accept(self, character: str) -> bool:
        accepted = self._text.startswith(character, self._at)
        self._at += accepted
        return accepted

    def _error(self, why: str) -> BadSnapshot:
        return BadSnapshot(f"{why} (character {self._at} of the regular expression)")


def _others(ranges: Ranges) -> Ranges:
    """All characters that are in none of these."""
    found = []
    begin = 0
    for first, last in sorted(ranges):
        if begin < ord(first):
            found.append((chr(begin), chr(ord(first) - 1)))
        begin = max(begin, ord(last) + 1)
    return (*found, (chr(begin), chr(_LAST))) if begin <= _LAST else tuple(found)
