"""Layers of a few names, so that random ones meet: strategies for whatever merges them."""

from __future__ import annotations

import hashlib

from hypothesis import strategies as st

from lazyfs.format.entry import Chunk, Entry

CONTENTS = (b"", b"one", b"another", b"x" * 5000)


def file(name: bytes, content: bytes = b"", **facts: object) -> Entry:
    """A regular file of these bytes, in chunks of at most 4,096."""
    pieces = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    chunks = tuple(
        Chunk(number * 4096, len(piece), hashlib.sha256(piece).digest(), 0, 0, 1) for number, piece in enumerate(pieces)
    )
    return Entry(name, "reg", size=len(content), chunks=chunks, **facts)  # type: ignore[arg-type]


# Few names, so that layers meet; whiteouts of names that are there and that are not.
part = st.one_of(st.sampled_from([b"a", b"b"]), st.sampled_from([b"-", b"\xff", b"n" * 251]) | st.just(b"a"))
leaf = st.one_of(part, part, part.map(lambda name: b".wh." + name), st.just(b".wh..wh..opq"), st.just(b".wh..wh.plnk"))
path = st.builds(lambda parents, name: b"/".join([*parents, name]), st.lists(part, max_size=3), leaf)
xattrs = st.dictionaries(
    st.sampled_from(
        [
            b"user.a",
            b"security.a",
            b"system.other",
            b"lone",
            b"trusted.overlay.opaque",
            b"trusted.overlay.metacopy",
            b"trusted.overlay.overlay.redirect",
        ]
    ),
    st.sampled_from([b"", b"y", b"v" * 300]),
    max_size=2,
).map(lambda found: tuple(sorted(found.items())))


@st.composite
def layers_of_entries(draw: st.DrawFn) -> list[Entry]:
    """A layer as parse_toc lets it pass: each name once, no directory that is a file, links to earlier files only."""
    entries: dict[bytes, Entry] = {}
    for name in draw(st.lists(path, min_size=1, max_size=12, unique=True)):
        kind = draw(st.sampled_from(["dir", "dir", "reg", "reg", "symlink", "fifo", "char", "hardlink"]))
        shown = {
            "mode": draw(st.integers(0, 0o7777)),
            "uid": draw(st.integers(0, 3)),
            "mtime_ns": draw(st.integers(-(10**10), 10**18)),
        }
        if name.rpartition(b"/")[2].startswith(b".wh."):
            entries[name] = Entry(name, "reg")
        elif kind == "hardlink":
            files = [other for other, entry in entries.items() if entry.type in ("reg", "symlink", "char")]
            entries[name] = Entry(name, "hardlink", link=draw(st.sampled_from(files))) if files else Entry(name, "dir")
        elif kind == "reg":
            entries[name] = file(name, draw(st.sampled_from(CONTENTS)), xattrs=draw(xattrs), **shown)
        elif kind == "symlink":
            entries[name] = Entry(name, "symlink", link=b"nowhere", xattrs=draw(xattrs), **shown)  # type: ignore[arg-type]
        elif kind == "char":
            numbers = {"major": draw(st.integers(0, 1)), "minor": draw(st.sampled_from([0, 3, 700]))}
            entries[name] = Entry(name, "char", **shown | numbers)  # type: ignore[arg-type]
        else:
            entries[name] = Entry(name, kind, xattrs=draw(xattrs), **shown)  # type: ignore[arg-type]
    if draw(st.booleans()):
        entries[b""] = Entry(b"", "dir", mode=draw(st.integers(0, 0o7777)), mtime_ns=draw(st.integers(0, 9)))
    kept = dict(entries)
    for name in entries:
        above = name
        while above := above.rpartition(b"/")[0]:
            if above in kept and kept[above].type != "dir":
                kept.pop(name, None)
    return [entry for entry in kept.values() if entry.type != "hardlink" or entry.link in kept]
