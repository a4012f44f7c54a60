"""PAX records: read, written, refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidTar
from lazyfs.format.pax import format_time, parse_number, parse_records, parse_time, record

KEYS = st.binary(min_size=1, max_size=40).filter(lambda key: b"=" not in key)


@given(st.lists(st.tuples(KEYS, st.binary(max_size=200)), max_size=5))
def test_records_come_back_as_they_were_written(records: list[tuple[bytes, bytes]]) -> None:
    """Order, repetitions, NULs and newlines included."""
    assert parse_records(b"".join(record(key, value) for key, value in records), "t") == records


@pytest.mark.parametrize("size", [1, 2, 90, 91, 92, 93, 94, 95, 985, 990, 991, 992, 993, 9984, 9990, 9991])
def test_a_record_counts_its_own_digits(size: int) -> None:
    """The length is right where it gets another digit by being written."""
    made = record(b"key", b"v" * size)
    assert int(made.split(b" ")[0]) == len(made)


@pytest.mark.parametrize(
    "data",
    [
        b"6 a=b",
        b"7 a=b\n",
        b"5 a=b\n",
        b"x a=b\n",
        b" a=b\n",
        b"-6 a=b\n",
        b"5 ab\n",
        b"5 =b\n",
        b"99999999999999999999999999 a=b\n",
        b"0 a=b\n",
        b"6 a=b\n\0\0",
    ],
)
def test_a_broken_record_is_refused(data: bytes) -> None:
    """A length that does not end at a newline, no key, no equals sign, bytes that belong to nothing."""
    with pytest.raises(InvalidTar, match=r"^t: an extended header"):
        parse_records(data, "t")


@given(st.integers(-(2**70), 2**70))
def test_times_come_back_to_the_nanosecond(nanoseconds: int) -> None:
    """Before 1970 and after 2262 as well."""
    assert parse_time(format_time(nanoseconds), "t") == nanoseconds


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"0", 0),
        (b"1.5", 1_500_000_000),
        (b"1.", 1_000_000_000),
        (b"-1.5", -1_500_000_000),
        (b"-0.000000001", -1),
        (b"1.1234567899", 1_123_456_789),
        (b"-1.1234567899", -1_123_456_789),
    ],
)
def test_times_are_read_as_go_reads_them(text: bytes, nanoseconds: int) -> None:
    """Digits beyond the ninth are cut off towards zero."""
    assert parse_time(text, "t") == nanoseconds


@pytest.mark.parametrize("text", [b"", b"-", b".5", b"1e3", b"1.5x", b" 1", b"+1", b"1,5", b"9" * 20, b"9" * 19, b"1\n"])
def test_what_is_no_time_is_refused(text: bytes) -> None:
    """No exponent, no blank, no number that no system could hold."""
    with pytest.raises(InvalidTar):
        parse_time(text, "t")


@pytest.mark.parametrize("text", [b"", b"-1", b"+1", b"0x1", b"1_0", b" 1", b"9" * 20])
def test_what_is_no_number_is_refused(text: bytes) -> None:
    """Plain digits, and not too many of them."""
    with pytest.raises(InvalidTar):
        parse_number(text, "t")
