"""JSON is read as Go's encoding/json reads it, which is what containerd, skopeo and umoci do."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.format import foreign_json as j
from lazyfs.format.deep_json import dump, load

KEYS = ["size", "name"]


class _Answer(msgspec.Struct):
    token: str = ""
    life: int | None = None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a": null, "b": [null, {"c": null}]}', {"a": None, "b": [None, {"c": None}]}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"a": "\xff"}', {"a": "\ufffd"}),
        (b'{"a": "\\ud800x\\udc00"}', {"a": "\ufffdx\ufffd"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a": 1e400, "b": 1}', {"a": float("inf"), "b": 1}),
        (b'{"a": ' + b"9" * 5000 + b"}", {"a": float("inf")}),
        (b' \n{"a": 1}\r\n\t ', {"a": 1}),
    ],
)
def test_what_go_reads_is_read(data: bytes, expected: Any) -> None:
    """Odd text and odd numbers are read; the fields beside them count."""
    assert j.decode(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": "\x01"}',
        b"[" * 10_001 + b"]" * 10_001,
        b"[" + b"0," * 600_000 + b"0]",
    ],
    ids=["empty", "byte order mark", "two documents", "NaN", "control character", "depth", "values"],
)
def test_what_go_refuses_is_refused(data: bytes) -> None:
    """One error for all of it, whichever parser found it; so are depth and count, which have bounds."""
    with pytest.raises(msgspec.DecodeError):
        j.decode(data)


@pytest.mark.parametrize("depth", [900, 5000, 10_000])
def test_depth_is_gos(depth: int) -> None:
    """10,000 levels, without recursion on the way in, through, and out again."""
    data = b'[{"a":' * (depth // 2) + b"null" + b"}]" * (depth // 2)
    value = j.decode(data)
    assert j.encode(value) == data
    assert j.encode(j.drop_nulls(value)) == data.replace(b'"a":null', b"")


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(_values, st.sampled_from([None, 1]), st.integers(0), st.sampled_from('{}[],:"0x \\'))
def test_the_slow_parser_reads_what_json_reads(value: Any, indent: int | None, where: int, letter: str) -> None:
    """And refuses what json refuses: each text, and one with another letter in it."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    assert load(text) == value == json.loads(dump(value))
    at = where % len(text)
    broken = text[:at] + letter + text[at + 1 :]
    try:
        expected = json.loads(broken, parse_constant=float)
    except ValueError:
        with pytest.raises(ValueError, match=r"\w"):
            load(broken)
    else:
        assert load(broken) == expected


def test_null_is_the_default() -> None:
    """A null in a typed document means the same as no such field."""
    assert j.decode_as(b'{"token": null, "life": null}', _Answer) == _Answer()
    assert j.decode_as(b'{"token": "x"}', _Answer) == _Answer("x")


def test_fields_by_any_case() -> None:
    """Go does not mind the case of a name, takes the last of several, and a null as nothing."""
    assert j.fields({"Size": 1, "SIZE": 2, "other": 3}, KEYS) == {"size": 2}
    assert j.fields({"size": 1, "NAME": None}, KEYS) == {"size": 1}
    assert j.fields({"Size": 1, "size": None}, KEYS) == {}


def test_a_replaced_field_has_one_spelling() -> None:
    """What replaces a field leaves no other spelling of it, which a reader might take instead."""
    assert j.replaced({"Size": 1, "sIze": 2, "x": None}, {"size": 3}) == {"x": None, "size": 3}
