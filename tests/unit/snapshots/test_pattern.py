"""Regular expressions, held against Python's own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadSnapshot
from lazyfs.snapshots.pattern import Pattern

SINGLES = [
    "a",
    "b",
    ".",
    "0",
    "_",
    r"\.",
    r"\n",
    r"\x61",
    r"\d",
    r"\W",
    r"\S",
    "[ab]",
    "[^ab]",
    "[a-c]",
    r"[\d_-]",
    "[]a]",
    r"[^\s0]",
]
COUNTS = ["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?", "{0}"]


def several(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    grouped = parts.map(lambda part: f"({part})") | parts.map(lambda part: f"(?:{part})")
    return st.one_of(
        st.lists(parts, max_size=3).map("".join),
        st.lists(grouped, min_size=1, max_size=3).map("|".join),
        st.tuples(grouped, st.sampled_from(COUNTS)).map("".join),
    )


expressions = st.recursive(
    st.sampled_from([*SINGLES, "^", "$", *(f"{single}{count}" for single in SINGLES for count in COUNTS)]), several, max_leaves=8
)


@given(expressions, st.text("ab0_.\n c-]é", max_size=8))
def test_python_finds_the_same(expression: str, text: str) -> None:
    """Whatever is built of what we know, on texts that meet all its classes. Python's $ also stands before a last line's end."""
    expected = re.search(re.sub(r"(?<!\\)\$", r"\\Z", expression), text, re.ASCII) is not None
    assert Pattern(expression).found_in(text) is expected


@pytest.mark.parametrize(
    ("expression", "found", "missed"),
    [
        ("", ["", "x"], []),
        ("extract-[0-9]+", ["default/7/extract-12 sha256:"], ["extract-", "Extract-1"]),
        ("^(foo|bar)$", ["foo", "bar"], ["foobar", "xfoo", "foo\n"]),
        ("(|a)$", ["", "b"], []),
        ("a{2,3}b{,2}", ["aab{,2}"], ["aabb", "ab{,2}"]),
        (r"\\\/\{\_", ["\\/{_"], ["\\/{"]),
        ("[a\\]^-]", ["]", "^", "-"], ["b", "\\"]),
        ("[a-]", ["-", "a"], ["b"]),
        ("[^\\D]", ["5"], ["x", ""]),
        (r"\s", [" ", "\t"], ["\v", "\xa0"]),
        (r"\w", ["a"], ["é"]),
        (".", ["\U0010ffff", "é"], ["\n", ""]),
        ("x]}", ["x]}"], ["x"]),
        ("(a*)*$", ["", "b"], []),
        ("(a{0,20}){20}c", ["c"], ["b"]),
    ],
)
def test_cases(expression: str, found: list[str], missed: list[str]) -> None:
    """What is easily got wrong: brackets, braces, ends, classes of ASCII, loops around nothing."""
    pattern = Pattern(expression)
    assert [text for text in found if not pattern.found_in(text)] == []
    assert [text for text in missed if pattern.found_in(text)] == []


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(", "without its )"),
        ("a)", "without its ("),
        ("[a", "ends too early"),
        ("[]", "ends too early"),
        ("a\\", "ends too early"),
        ("*", "nothing to repeat"),
        ("a|+", "nothing to repeat"),
        ("({2}a)", "nothing to repeat"),
        ("a**", "repetition of a repetition"),
        ("a{2}{3}", "repetition of a repetition"),
        ("a*??", "repetition of a repetition"),
        ("a{3,2}", "more to fewer"),
        ("a{1001}", "too far"),
        ("a{0,99999999999999999999}", "too far"),
        ("(?i)a", "not supported"),
        ("(?P<n>a)", "not supported"),
        ("(?=a)", "not supported"),
        (r"\bfoo", r"\b is not supported"),
        (r"(a)\1", r"\1 is not supported"),
        (r"\pL", "not supported"),
        (r"\xg", "not supported"),
        (r"\é", "not supported"),
        ("[[:alpha:]]", "not supported"),
        ("[z-a]", "range"),
        (r"[a-\d]", "range"),
        ("x" * 513, "more than 512"),
        ("(" * 40 + ")" * 40, "too deep"),
        ("((a{50}){50}){50}", "too large"),
    ],
)
def test_what_is_refused(expression: str, why: str) -> None:
    """What is broken, what RE2 has and we have not, and what is too large: never read as something else."""
    with pytest.raises(BadSnapshot, match=re.escape(why)):
        Pattern(expression)


@given(st.text("()[]{}|*+?^$\\-,:.abdwxnz012", max_size=30))
def test_anything_is_read_or_refused(expression: str) -> None:
    """No text makes anything but a pattern or a refusal."""
    try:
        Pattern(expression).found_in("ab01")
    except BadSnapshot:
        pass


@pytest.mark.parametrize(
    "expression", ["(a|a)*b", "(a*)*b", "(.*a){20}c", "a*a*a*a*a*a*b", "(a?){100}a{100}b", "(((){1000}){1000}){1000}b"]
)
def test_none_takes_long(expression: str) -> None:
    """What keeps a backtracking matcher busy for years is answered."""
    assert not Pattern(expression).found_in("a" * 1000)
