"""Layers for tests: made of entries, converted in memory, looked into."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hypothesis import strategies as st

from converter.layer import NewLayer, Style, write_layer
from lazyfs.format.entry import TOC_NAME, Entry
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.tar import TarMember
from lazyfs.format.tar_header import header_bytes
from lazyfs.format.toc import parse_toc
from lazyfs.layertar.cut import every
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.plan import Planned, plan_layer
from lazyfs.layertar.tree import LowerTree
from tests.tars import END, content, padded, read

THREADS = ThreadPoolExecutor(4)
STYLE = Style(every(5), 6)
Item = tuple[Entry, bytes]


def tar_of(items: Iterable[Item]) -> bytes:
    """A tar of entries and their contents."""
    return b"".join(header_bytes(entry) + padded(data) for entry, data in items) + END


def items_of(tar: bytes) -> list[Item]:
    """The entries of a tar with their contents."""
    return [(member.entry, content(member, tar)) for member in read(tar)]


class Converted(NamedTuple):
    """A converted layer, whole."""

    blob: bytes
    layer: NewLayer
    plan: Sequence[Planned]
    members: Sequence[TarMember]
    """Of the source."""

    @property
    def tar(self) -> bytes:
        return gzip.decompress(self.blob)

    @property
    def items(self) -> list[Item]:
        """What the tar holds, without the TOC."""
        items = items_of(self.tar)
        assert items[-1][0].name == TOC_NAME
        return items[:-1]

    @property
    def toc(self) -> bytes:
        return items_of(self.tar)[-1][1]

    @property
    def toc_offset(self) -> int:
        return parse_footer(self.blob[-FOOTER_SIZE:], len(self.blob), "layer")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of the TOC."""
        return parse_toc(self.toc, self.toc_offset, "layer")


def convert_tar(
    tar: bytes,
    tree: LowerTree | None = None,
    number: int = 0,
    style: Style = STYLE,
    prioritized: Sequence[bytes] = (),
    workers: int = 2,
) -> Converted:
    """Convert one layer onto `tree`."""
    members = read(tar)
    index = index_layer(tree or LowerTree(), members, number, f"layer {number}")
    plan = plan_layer(index, prioritized)
    file, layer = write_layer(plan, lambda at, size: tar[at : at + size], style, THREADS, workers, lambda _count: None)
    with file:
        file.seek(0)
        return Converted(file.read(), layer, plan, members)


COMPONENTS = st.sampled_from([b"a", b"b", b"c", b"\xe9"])
NAMES = st.lists(COMPONENTS, min_size=1, max_size=3).map(b"/".join)
LINKS = st.sampled_from([b"a", b"/b", b"../c", b"c/a", b".", b"/", b"a/../b", b"missing"])


@st.composite
def items(draw: st.DrawFn) -> Item:
    """Any entry, whiteouts included; few names, so that they meet."""
    name = draw(NAMES)
    kind = draw(st.sampled_from(["dir", "dir", "reg", "reg", "symlink", "hardlink", "char", "whiteout", "opaque"]))
    mode, uid, mtime = (
        draw(st.sampled_from([0o755, 0o4711, 0])),
        draw(st.sampled_from([0, 7, 2**32 - 2])),
        draw(st.integers(-5, 5)),
    )
    parent, base = name.rpartition(b"/")[::2]
    at = parent + b"/" if parent else b""
    if kind == "whiteout":
        return Entry(at + b".wh." + base, "reg"), b""
    if kind == "opaque":
        return Entry(name + b"/.wh..wh..opq", "reg"), b""
    data = draw(st.binary(max_size=12)) if kind == "reg" else b""
    link = draw(LINKS) if kind == "symlink" else draw(NAMES) if kind == "hardlink" else b""
    return Entry(name, kind, mode, uid, 0, mtime, len(data), link, 1 if kind == "char" else 0, 3 if kind == "char" else 0), data


LAYERS = st.lists(st.lists(items(), max_size=10), min_size=1, max_size=3)
