"""The tests' CRI client reads a container's log as what the container wrote."""

from __future__ import annotations

import pytest

from tests.cri.client import parse_log


@pytest.mark.parametrize(
    ("log", "stdout", "stderr"),
    [
        (b"", "", ""),
        (b"T stdout F one\nT stderr F bad\nT stdout F two\n", "one\ntwo\n", "bad\n"),
        (b"T stdout P long \nT stderr F bad\nT stdout P line \nT stdout F ends\n", "long line ends\n", "bad\n"),
        (b"T stdout F \nT stdout F a  b\r\nT stdout P no newline\n", "\na  b\r\nno newline", ""),
        (b"T stdout F here\nT stdout F half a li", "here\n", ""),
        (b"T stdout F caf\xe9 \xe2\x80\xa8 line\n", "caf\ufffd \u2028 line\n", ""),
    ],
)
def test_log(log: bytes, stdout: str, stderr: str) -> None:
    """Streams apart, parts of lines joined, whatever bytes it wrote, and nothing of a line that is still being written."""
    assert parse_log(log) == (stdout, stderr)
