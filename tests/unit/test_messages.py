"""Messages of errors: one bounded line each, whatever foreign text they quote."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs import errors
from lazyfs.errors import MAX_MESSAGE, HeldOff, InvalidInput, LazyfsError, show


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "'plain'"),
        ("two\nlines\x1b[31m\u202e", "'two\\nlines\\x1b[31m\\u202e'"),
        (b"caf\xe9\n", "'caf\\\\xe9\\n'"),
        (None, "None"),
        (12, "12"),
        (1.5, "1.5"),
        pytest.param(10**5000, "a number of 16610 bits", id="huge"),
        ({"a": "b" * 5000}, "a JSON object"),
        (["b" * 5000], "a list"),
    ],
)
def test_show(value: object, expected: str) -> None:
    """A value is quoted as one printable line. What has no short form is named by its kind."""
    assert show(value) == expected


@pytest.mark.parametrize("large", ["x" * (8 << 20), b"\xff" * (8 << 20), "\n" * (8 << 20)], ids=["text", "bytes", "lines"])
def test_a_large_value_is_cut_in_the_middle(large: str | bytes) -> None:
    """Eight megabytes become two hundred characters, without a copy."""
    tracemalloc.start()
    try:
        text = show(large)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert len(text) == 200
    assert "…" in text


@given(st.text() | st.binary(), st.integers(20, 300))
def test_show_is_one_line_of_its_limit(value: str | bytes, limit: int) -> None:
    """For any text."""
    text = show(value, limit)
    assert text.isprintable()
    assert len(text) <= limit


@given(st.text(max_size=40), st.sampled_from([1, 100]), st.text(max_size=40))
def test_any_message_is_one_bounded_line(message: str, times: int, hint: str) -> None:
    """A message that forgets to quote foreign text does no harm: the error keeps it short and printable."""
    error = InvalidInput(message * times, hint=hint * times)
    for text in (error.message, error.hint, *error.args):
        assert text.isprintable()
        assert len(text) <= MAX_MESSAGE


def test_a_plain_message_is_left_as_it_is() -> None:
    """A short, printable message is not changed."""
    error = LazyfsError("layer 'é' is bad", hint="Do this")
    assert (error.message, error.hint, str(error)) == ("layer 'é' is bad", "Do this", "layer 'é' is bad. Do this")


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in errors.__all__ if name[0].isupper()])
def test_every_error_can_be_said_in_other_words(kind: type[LazyfsError]) -> None:
    """A read adds the file's name, a mount adds what the tag last pointed to. Errno and exit code stay."""
    error = HeldOff("wait", 7.0) if kind is HeldOff else kind("it failed")
    other = error.reworded("a file cannot be read", "Wait")
    assert type(other) is kind
    assert str(other) == "a file cannot be read. Wait"
    assert not isinstance(other, HeldOff) or other.until == 7.0
