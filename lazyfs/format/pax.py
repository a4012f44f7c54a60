r"""PAX records: what a tar says beyond its 512-byte headers.

Source: POSIX.1-2017, pax, "pax Extended Header". A record is `LENGTH KEY=VALUE\n`, where LENGTH counts the whole
record in decimal digits, itself included. Values are bytes: an extended attribute may hold NUL and newlines, which is what
the length is for.
"""

from __future__ import annotations

import re

from lazyfs.errors import InvalidTar, show

XATTR_PREFIX = b"SCHILY.xattr."
_TIME = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?\Z")


def parse_records(data: bytes, what: str) -> list[tuple[bytes, bytes]]:
    """The records in `data`, in order, repetitions included (GNU sparse 0.0 means something by them).

    Raises InvalidTar, naming `what`.
    """
    records: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position : max(space, position)]
        end = position + int(digits) if digits.isdigit() else 0
        if not space < end - 1 < len(data) or data[end - 1] != 0x0A:
            raise InvalidTar(f"{what}: an extended header has a record whose length is wrong")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not key or not equals:
            raise InvalidTar(f"{what}: an extended header has a record without a key")
        records.append((key, value))
        position = end
    return records


def record(key: bytes, value: bytes) -> bytes:
    """Encode one record. Its length includes its own digits, hence the loop."""
    rest = len(key) + len(value) + 3  # blank, equals sign, newline
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def parse_time(text: bytes, what: str) -> int:
    """Nanoseconds since 1970 of a decimal count of seconds; digits beyond the ninth are cut off, as in Go."""
    match = _TIME.match(text)
    if match is None:
        raise InvalidTar(f"{what}: {show(text)} is not a time")
    sign, seconds, fraction = match.groups()
    total = int(seconds) * 10**9 + int((fraction or b"").ljust(9, b"0")[:9])
    if total >= 2**63 * 10**9:
        raise InvalidTar(f"{what}: the time {show(text)} is beyond what any system holds")
    return -total if sign else total


def format_time(nanoseconds: int) -> bytes:
    """The decimal count of seconds that `parse_time` reads as `nanoseconds`."""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    sign = b"-" if nanoseconds < 0 else b""
    return b"%b%d.%09d" % (sign, seconds, fraction) if fraction else b"%b%d" % (sign, seconds)


def parse_number(text: bytes, what: str) -> int:
    """A decimal number of at most 63 bits."""
    if not text.isdigit() or len(text) > 19:
        raise InvalidTar(f"{what}: {show(text)} is not a number")
    return int(text)
