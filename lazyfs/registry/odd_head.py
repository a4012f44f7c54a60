"""Parses heads that violate HTTP's grammar and that the fast parser (head.py) rejects, with h11.

The reference is Go's net/http, because containerd and skopeo use it: what it accepts is accepted here. h11 accepts most of that
(bare line feeds, folded lines, odd versions), and `_repaired` rewrites the rest. A connection with such a head is not used
again, so that two readers cannot disagree about where the next response begins.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from lazyfs.errors import BadAnswer
from lazyfs.registry.head import MAX_HEAD, Head

_END = re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"(HTTP/[0-9]\.[0-9]) +")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_FIELD = re.compile(rb"([^:]*):[ \t]*(.*)")
_CONTROLS: Final = bytes.maketrans(b"\0\r\v\f", b"    ")
_FIRST_COUNTS: Final = frozenset({"content-range", "location"})
"""Of several different values, Go uses the first."""


def end_of_head(data: bytes | bytearray, searched: int = 0) -> int:
    """Where the head in `data` ends, including its empty line, with any kind of line ends; 0 if it does not end yet.

    It does not end before `searched`.
    """
    found = _END.search(data, searched)
    return found.end() if found else 0


def read_odd_head(data: bytes, refusal: BadAnswer) -> Head:
    """The head in `data`, which ends with its empty line. Raises `refusal`, the error of the fast parser, if h11 rejects it
    too."""
    reader = response_parser()
    try:
        reader.receive_data(_repaired(data))
        event = reader.next_event()
    except h11.RemoteProtocolError as error:
        raise refusal from error
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise refusal
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name not in _FIRST_COUNTS:
            headers[name] += ", " + value
    return Head(event.status_code, headers, keep_alive=False)


def response_parser() -> h11.Connection:
    """An h11 parser at the beginning of the response to a GET."""
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * MAX_HEAD)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    reader.send(h11.EndOfMessage())
    return reader


def _repaired(data: bytes) -> bytes:
    """`data` as Go understands it, in a form that h11 accepts."""
    first, _, rest = data.partition(b"\n")
    found = _STATUS.match(first)
    if not found:
        return data
    kept = [found[1] + b" " + first[found.end() :].removesuffix(b"\r")]
    for folded in _FOLD.sub(b" ", rest).split(b"\n"):
        line = folded.removesuffix(b"\r").translate(_CONTROLS)
        field = _FIELD.match(line)
        name, value = (field[1].lower(), field[2].rstrip(b" \t")) if field else (b"", b"")
        if field and not _NAME.match(name) and not name.startswith(b" "):
            continue  # Go keeps such a header under a name that nobody looks up
        if name == b"transfer-encoding" and found[1] == b"HTTP/1.0":
            continue  # Go ignores it: HTTP/1.0 has no chunks
        if name == b"content-length" and not value:
            continue  # Go treats it as missing
        if name == b"content-length" and value.isdigit():
            kept.append(b"Content-Length: " + (value.lstrip(b"0") or b"0"))
        else:
            kept.append(line)
    return b"\r\n".join(kept)
