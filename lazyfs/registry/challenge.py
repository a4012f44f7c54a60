"""WWW-Authenticate: what a registry wants to see (RFC 9110 §11.6.1; the token flow of the distribution project)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from lazyfs.errors import BadAnswer

MAX_HEADER: Final = 16 << 10

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATORS = re.compile(r"[\s,;]*")
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",;]*)(?=[\s,;]|\Z))')
_SCHEME = re.compile(rf"({_WORD})(?=[\s,]|\Z)")
_TOKEN68 = re.compile(r"\s+[0-9A-Za-z._~+/-]+=*\s*(?=,|\Z)")


class Challenge(NamedTuple):
    """One scheme that the registry would take."""

    scheme: str
    """Lower case: `basic`, `bearer`."""
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges in a header's value (several headers joined by commas), as far as they can be read.

    What breaks the grammar ends the reading, and what stands before it counts: parameters without commas between them, and rubbish
    behind them, occur. Linear in the header's length. Raises BadAnswer for one that is too long.
    """
    if len(header) > MAX_HEADER:
        raise BadAnswer(f"the registry's WWW-Authenticate header has {len(header)} characters")
    found: list[Challenge] = []
    position = 0
    while True:
        separators = _SEPARATORS.match(header, position)
        assert separators is not None, "the pattern matches the empty text"
        position = separators.end()
        parameter = _PARAMETER.match(header, position)
        if parameter is not None and found:
            name, quoted, plain = parameter.groups()
            found[-1].parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            position = parameter.end()
            continue
        scheme = _SCHEME.match(header, position)
        if scheme is None:
            return found
        found.append(Challenge(scheme[1].lower(), {}))
        # A scheme that we cannot use may have one long token instead of parameters.
        token = _TOKEN68.match(header, scheme.end())
        position = token.end() if token else scheme.end()
