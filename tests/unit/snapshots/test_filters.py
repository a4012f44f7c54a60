"""containerd's filters, held against a model and against what its own parser does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadSnapshot
from lazyfs.snapshots.filters import Filter
from lazyfs.snapshots.snapshot import Kind, Snapshot

LABELS = ["foo", "more complex label", 'with \\ and "', 'with \\ and ".post', "containerd.io/gc.root", "ü"]
VALUES = ["", "true", "present", "too complex, yo", "omg_asdf.asdf-qwer", "active", "sha256:0/1=~!", "a\nb\0\x7f", "ü\U0001f600"]


def a_snapshot(key: str = "key", parent: str = "", kind: Kind = "active", labels: dict[str, str] | None = None) -> Snapshot:
    return Snapshot(1, key, parent, kind, labels or {}, 0, 0)


snapshots = st.builds(
    a_snapshot,
    st.sampled_from(VALUES[1:]),
    st.sampled_from(VALUES),
    st.sampled_from(["active", "view", "committed"]),
    st.dictionaries(st.sampled_from(LABELS), st.sampled_from(VALUES[1:])),
)


def quoted(text: str, styles: list[int], quote: str = '"') -> str:
    """In Go's quotes; the styles say how each character is written."""
    written = []
    for number, character in enumerate(text):
        style = styles[number % len(styles)] if styles else 0
        code = ord(character)
        if character in {quote, "\\"}:
            written.append("\\" + character)
        elif character == "\n" or style == 1:
            written.append("".join(f"\\x{byte:02x}" for byte in character.encode()))
        elif style == 2:
            written.append("".join(f"\\{byte:03o}" for byte in character.encode()))
        elif style == 3:
            written.append(f"\\U{code:08X}" if code > 0xFFFF else f"\\u{code:04x}")
        else:
            written.append(character)
    return quote + "".join(written) + quote


class Asked:
    """One selector: as text, and as what it means."""

    def __init__(self, field: str, operator: str, value: str, styles: list[int], blanks: str) -> None:
        self.field, self.operator, self.value = field, operator, value
        path = field if field in {"name", "parent", "kind", "other"} else f"labels.{quoted(field, styles)}"
        self.text = f"{blanks}{path}" + (f"{blanks}{operator}{blanks}{quoted(value, styles)}" if operator else "")

    def holds(self, snapshot: Snapshot) -> bool:
        known: dict[str, str] = {"name": snapshot.key, "parent": snapshot.parent, "kind": snapshot.kind} | snapshot.labels
        if self.operator == "!=":
            return known.get(self.field, "") != self.value
        return self.field in known and (not self.operator or known[self.field] == self.value)


asked = st.builds(
    Asked,
    st.sampled_from(["name", "parent", "kind", "other", *LABELS]),
    st.sampled_from(["", "==", "!="]),
    st.sampled_from(VALUES),
    st.lists(st.integers(0, 3), max_size=5),
    st.sampled_from(["", " ", "\t\u2003"]),
)


@given(st.lists(st.lists(asked, min_size=1, max_size=3), max_size=3), snapshots)
def test_the_model_agrees(filters: list[list[Asked]], snapshot: Snapshot) -> None:
    """Any filter of which all selectors hold, or no filter at all; however names and values are quoted."""
    expected = not filters or any(all(selector.holds(snapshot) for selector in selectors) for selectors in filters)
    assert Filter([",".join(each.text for each in selectors) for selectors in filters]).matches(snapshot) is expected


@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("", "abcdefg"),
        ("name", "abcdefg"),
        ("labels", ""),
        ("other", ""),
        ("kind.of", "abcdefg"),
        ("labels.foo", "ac"),
        ("labels.foo,name", "ac"),
        ("labels.foo==true", "a"),
        ("labels.foo==omg_asdf.asdf-qwer", "c"),
        ("labels.foo!=true", "bcdefg"),
        ('labels.foo!=""', "ac"),
        ('labels."more complex label"', "b"),
        ('labels."with \\\\ and \\"".post==present', "d"),
        ("name==bar,labels.foo==true", "a"),
        ("name == bar", "abc"),
        ("parent==p/1-2:3", "e"),
        ('parent==""', "abcdfg"),
        ("kind==committed", "f"),
        ("name==\\x62ar", ""),
        ("name==ba|r", ""),
    ],
)
def test_cases(text: str, matching: str) -> None:
    """The cases of containerd's own tests, and what of its grammar is easily got wrong."""
    corpus = {
        "a": a_snapshot("bar", labels={"foo": "true"}),
        "b": a_snapshot("bar", labels={"more complex label": "present"}),
        "c": a_snapshot("bar", labels={"foo": "omg_asdf.asdf-qwer"}),
        "d": a_snapshot("baz", labels={'with \\ and ".post': "present"}),
        "e": a_snapshot("baz", parent="p/1-2:3"),
        "f": a_snapshot("baz", kind="committed"),
        "g": a_snapshot("baz", kind="view"),
    }
    wanted = Filter([text])
    assert "".join(name for name, snapshot in corpus.items() if wanted.matches(snapshot)) == matching


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("name==foo,", 11, "expected a field"),
        ("labels.", 8, "expected a field"),
        ('labels.?"x"==y', 8, "expected a field"),
        ("labels.|foo|==x", 8, "quotes"),
        ("labels.ns/key==value", 10, "expected an operator"),
        ("name=foo", 5, "expected an operator"),
        ("name===foo", 5, "expected an operator"),
        ("name ,parent", 6, "expected an operator"),
        ("name ", 6, "expected an operator"),
        ("image==,id", 8, "expected a value"),
        ("name==.x", 7, "expected a value"),
        ("name==", 7, "expected a value"),
        ("name== =x", 8, "expected a value"),
        ("name==\0", 7, "expected a value"),
        ("name==foo bar", 10, "expected a comma"),
        ("name==foo ,parent", 10, "expected a comma"),
        ('name=="foo"bar', 12, "expected a comma"),
        ("name==/value/", 7, "quotes"),
        ('name=="value', 7, "no end"),
        ('name=="a\nb"', 7, "no end"),
        ('name=="a\\', 9, "no such escape"),
        ('name=="\\q"', 8, "no such escape"),
        ('name=="\\/"', 8, "no such escape"),
        ('name=="\\x1"', 8, "cut short"),
        ('name=="\\u12g4"', 8, "cut short"),
        ('name=="\\08"', 8, "cut short"),
        ('name=="\\400"', 8, "no such byte"),
        ('name=="\\U00110000"', 8, "no such character"),
        ("name==x,parent~=/[ab]+/", 15, "regular expressions (~=) are not supported"),
    ],
)
def test_errors_say_where(text: str, at: int, why: str) -> None:
    """A filter that cannot be read is refused, with the place and the reason."""
    with pytest.raises(BadSnapshot) as refused:
        Filter(["name", text])
    assert f"at character {at}: " in refused.value.message and why in refused.value.message


def test_bytes_that_are_no_text_equal_nothing() -> None:
    """Escapes may spell what is not UTF-8; half a surrogate pair is what Go makes of it."""
    assert not Filter(['name=="\\xff"']).matches(a_snapshot("\xff"))
    assert Filter(['name=="\\ud800"']).matches(a_snapshot("\ufffd"))


def test_a_long_filter_is_shown_in_part() -> None:
    """The refusal of a filter without end is not without end."""
    with pytest.raises(BadSnapshot) as refused:
        Filter(["name=" + "x" * 1_000_000])
    assert len(refused.value.message) < 500


@given(st.text('name.labels"/|\\x=!~, \t09', max_size=40))
def test_anything_is_read_or_refused(text: str) -> None:
    """No text makes anything but a filter or a refusal."""
    try:
        Filter([text]).matches(a_snapshot())
    except BadSnapshot:
        pass
