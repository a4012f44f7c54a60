"""The order in which a layer is written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidTar
from lazyfs.format.entry import Entry
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.plan import plan_layer
from lazyfs.layertar.tree import LowerTree
from tests.tars import read
from tests.unit.converter.making import LAYERS, Item, tar_of

FILES: list[Item] = [
    (Entry(b"", "dir"), b""),
    (Entry(b"a", "dir"), b""),
    (Entry(b"a/x", "reg", size=1), b"x"),
    (Entry(b"a/.wh.y", "reg"), b""),
    (Entry(b".wh.b", "reg"), b""),
    (Entry(b"b", "dir"), b""),
    (Entry(b"b/z", "reg", size=1), b"z"),
    (Entry(b"b/.wh..wh..opq", "reg"), b""),
    (Entry(b"c", "hardlink", link=b"b/z"), b""),
]


def order(layer: list[Item], *prioritized: bytes) -> list[bytes]:
    """The names in the order of the plan."""
    index = index_layer(LowerTree(), read(tar_of(layer)), 0, "layer")
    return [planned.entry.name for planned in plan_layer(index, prioritized)]


def test_the_tars_own_order_but_for_markers() -> None:
    """The landmark first, whiteouts at once behind their directory, the rest where it was."""
    assert order(FILES) == [
        b".no.prefetch.landmark",
        b"",
        b".wh.b",
        b"a",
        b"a/.wh.y",
        b"a/x",
        b"b",
        b"b/.wh..wh..opq",
        b"b/z",
        b"c",
    ]


def test_prioritised_names_come_first_with_all_they_need() -> None:
    """Parents, markers, the target of a hard link; then the landmark; then the rest."""
    assert order(FILES, b"c", b"a/x") == [
        b"",
        b".wh.b",
        b"b",
        b"b/.wh..wh..opq",
        b"b/z",
        b"c",
        b"a",
        b"a/.wh.y",
        b"a/x",
        b".prefetch.landmark",
    ]


def test_an_empty_layer_is_a_landmark() -> None:
    """And nothing else."""
    assert order([]) == [b".no.prefetch.landmark"]


@given(LAYERS, st.data())
def test_whatever_is_prioritised_nothing_is_lost(layers: list[list[Item]], data: st.DataObject) -> None:
    """Each entry once, and the order of those that are not prioritised stays."""
    tree = LowerTree()
    for number, layer in enumerate(layers):
        try:
            index = index_layer(tree, read(tar_of(layer)), number, "layer")
        except InvalidTar:
            return
        plain = [planned.entry for planned in plan_layer(index)][1:]
        wanted = data.draw(st.lists(st.sampled_from(list(index.inodes)), max_size=4)) if index.inodes else []
        entries = [planned.entry for planned in plan_layer(index, wanted)]
        landmark = next(position for position, entry in enumerate(entries) if entry.name.endswith(b".landmark"))
        assert sorted(entries[:landmark] + entries[landmark + 1 :], key=lambda entry: entry.name) == sorted(
            plain, key=lambda entry: entry.name
        )
        assert {entry.name for entry in entries[:landmark]} >= set(wanted)
        rest = [entry for entry in plain if entry in entries[landmark + 1 :]]
        assert rest == entries[landmark + 1 :]
