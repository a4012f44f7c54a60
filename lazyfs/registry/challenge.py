"""The WWW-Authenticate header: which authentication a registry wants (RFC 9110 §11.6.1; the token flow of the distribution
project).
"""

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
    """A scheme that the registry accepts."""

    scheme: str
    """Lower case: `basic`, `bearer`."""
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges in a header's value (several headers joined by commas), as far as they can be parsed.

    Parsing stops at the first syntax error, and what came before counts: parameters without commas between them, and garbage at
    the end, occur in practice. Linear in the header's length. Raises BadAnswer if it is too long.
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
        # A scheme that lazyfs does not use may have one long token instead of parameters.
        token = _TOKEN68.match(header, scheme.end())
        position = token.end() if token else scheme.end()
