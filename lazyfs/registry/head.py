"""The head of an HTTP/1.1 response: only what a range reader needs, and strict (RFC 9112 §4 to §6).

Two readers of one head must agree about where the body ends, so ambiguous heads are rejected: bare line feeds, folded lines,
blanks before a colon, contradictory lengths. What is rejected here is parsed again, more slowly, in odd_head.py.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from lazyfs.errors import BadAnswer

MAX_HEAD: Final = 64 << 10
END: Final = b"\r\n\r\n"

_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\0]*)?\Z")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\Z")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})\Z")
_ODD_CONTENT_RANGE = re.compile(
    r"(?i:bytes)[ \t=:]*([0-9]{1,19})[ \t]*-[ \t]*([0-9]{1,19})[ \t]*(?:/[ \t]*(?:([0-9]{1,19})|\*))?\Z"
)
"""What servers send instead: other case, other blanks, `bytes=` as in a request, no total."""
_SINGLE: Final = frozenset({"content-length", "content-range", "transfer-encoding", "location"})


class Head(NamedTuple):
    """Status and headers of a response."""

    status: int
    headers: dict[str, str]
    """By lower-case name; several of one name are joined by commas."""
    keep_alive: bool

    @property
    def length(self) -> int | None:
        """Bytes of the body; None if the end of the connection or the last chunk ends it."""
        value = self.headers.get("content-length")
        return int(value) if value is not None and "transfer-encoding" not in self.headers else None

    @property
    def content_range(self) -> tuple[int, int, int | None] | None:
        """`(start, end, total)`, the end exclusive; total is None if the server does not give it."""
        value = self.headers.get("content-range", "")
        found = _CONTENT_RANGE.match(value) or _ODD_CONTENT_RANGE.match(value)
        return (int(found[1]), int(found[2]) + 1, int(found[3]) if found[3] else None) if found else None


def parse_head(data: bytes) -> Head:
    """Parse `data`, without the empty line at its end. Raises BadAnswer."""
    lines = data.decode("latin-1").split("\r\n")
    status = _STATUS.match(lines[0])
    if status is None:
        raise BadAnswer("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        field = _FIELD.match(line)
        if field is None:
            raise BadAnswer("the answer's headers break HTTP's grammar")
        name, value = field[1].lower(), field[2]
        if name not in headers:
            headers[name] = value
        elif name not in _SINGLE:
            headers[name] += ", " + value
        elif headers[name] != value or name == "transfer-encoding":
            raise BadAnswer(f"the answer has two {name} headers")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise BadAnswer("the answer's Content-Length is not a number")
    if status[1] == "0":
        headers.pop("transfer-encoding", None)  # HTTP/1.0 has no chunks; Go ignores it too
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    return Head(int(status[2]), headers, status[1] == "1" and "close" not in options)
