"""WWW-Authenticate: what a registry wants to see (RFC 9110 §11.6.1; the token flow of the distribution project)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from lazyfs.errors import BadAnswer

MAX_HEADER: Final = 16 << 10

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_ITEM = re.compile(r'[^",]*(?:"(?:[^"\\]|\\.)*"[^",]*)*')
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))\Z')
_SCHEME = re.compile(rf"({_WORD})(?:\s+(.*))?\Z")


class Challenge(NamedTuple):
    """One scheme that the registry would take."""

    scheme: str
    """Lower case: `basic`, `bearer`."""
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """All challenges in a header's value (several headers joined by commas). Raises BadAnswer."""
    if len(header) > MAX_HEADER:
        raise BadAnswer(f"the registry's WWW-Authenticate header has {len(header)} characters")
    found: list[Challenge] = []
    position = 0
    while position < len(header):
        item = _ITEM.match(header, position)
        assert item is not None, "the pattern matches the empty text"
        if item.end() < len(header) and header[item.end()] != ",":
            raise BadAnswer("the registry's WWW-Authenticate header has a quote that does not end")
        position = item.end() + 1
        text = item[0].strip()
        if not text:
            continue
        parameter = _PARAMETER.match(text)
        if parameter is None:
            scheme = _SCHEME.match(text)
            if scheme is None:
                raise BadAnswer("the registry's WWW-Authenticate header breaks HTTP's grammar")
            found.append(Challenge(scheme[1].lower(), {}))
            parameter = _PARAMETER.match(scheme[2] or "")  # else the scheme stands alone, or has a token that we cannot use
        if parameter is not None and found:
            name, quoted, plain = parameter.groups()
            found[-1].parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return found
