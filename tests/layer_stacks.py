"""Stacks of layers, as tars, with which every merge of layers must give what umoci unpacks: one row per rule.

Each row's layers are in a folder named after the row, and all rows together are one image, so that umoci unpacks once. Members are
written by functions of the folder's path: symbolic links that begin with `/`, and hard links, lead into the folder as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

from tests.tars import END, file, header, pax

Member = Callable[[bytes], bytes]
CAPABILITY: Final = bytes.fromhex("0100000200200000000000000000000000000000")


class Row(NamedTuple):
    """A rule, and the layers that test it, lowest first."""

    name: str
    layers: Sequence[Sequence[Member]]
    differs: Mapping[bytes, str] = {}
    """Paths that are not shown although umoci shows them, and why."""


def f(name: bytes, data: bytes = b"", **fields: bytes) -> Member:
    """A regular file."""
    return lambda at: file(at + name, data, **fields)


def d(name: bytes, **fields: bytes) -> Member:
    """A directory."""
    return lambda at: header(at + name + b"/", b"5", **{"mode": b"0000755\0", **fields})


def sym(name: bytes, target: bytes) -> Member:
    """A symbolic link."""
    return lambda at: header(at + name, b"2", 0, b"/" + at + target[1:] if target.startswith(b"/") else target)


def hard(name: bytes, target: bytes) -> Member:
    """A hard link."""
    return lambda at: header(at + name, b"1", 0, at + target)


def node(name: bytes, kind: bytes, **fields: bytes) -> Member:
    """A device or a pipe."""
    return lambda at: header(at + name, kind, **fields)


def with_xattrs(member: Member, *pairs: tuple[bytes, bytes]) -> Member:
    """A member with extended attributes."""
    return lambda at: pax(*((b"SCHILY.xattr." + key, value) for key, value in pairs)) + member(at)


WH: Final = b".wh."
NOBODY: Final = b"\xff" * 8
"""An owner of -1."""
ALL_ONES: Final = b"\x80\0\0\0\xff\xff\xff\xff"
"""An owner of 2^32-1."""
OPQ: Final = b".wh..wh..opq"

ROWS: Final = (
    Row(
        "whiteouts",
        [
            [f(b"file", b"1"), d(b"dir"), f(b"dir/in", b"2"), sym(b"link", b"stays"), f(b"stays", b"3"), f(b"both", b"4"), f(b"late", b"5")],
            [
                f(WH + b"file"), f(WH + b"dir"), f(WH + b"link"), f(WH + b"nothing"), f(b"none/" + WH + b"x"),
                f(WH + b"both"), f(b"both", b"6"), f(b"late", b"7"), f(WH + b"late"),
            ],
        ],
    ),
    Row(
        "whiteouts-undone",
        [
            [f(b"a", b"1"), d(b"d", uid=b"0000005\0"), f(b"d/x", b"2")],
            [f(WH + b"a"), f(WH + b"d")],
            [f(b"a", b"3"), f(b"d/y", b"4")],
        ],
    ),
    Row(
        "a-directory-made-anew",
        [
            [d(b"d", uid=b"0000005\0"), f(b"d/old", b"1"), d(b"d/s"), f(b"d/s/old", b"2")],
            [f(WH + b"d"), d(b"d", mode=b"0000700\0"), f(b"d/new", b"3"), f(b"d/s/new", b"4")],
        ],
    ),
    Row(
        "whiteouts-behind-their-directory",
        [
            [d(b"d"), f(b"d/old", b"1"), d(b"d/s"), f(b"d/s/old", b"2")],
            [d(b"d"), f(b"d/new", b"3"), d(b"d/s"), f(b"d/s/new", b"4"), f(WH + b"d")],
        ],
    ),
    Row(
        "opaque-directories",
        [
            [d(b"first"), f(b"first/old", b"1"), d(b"last"), f(b"last/old", b"2"), d(b"last/s"), f(b"last/s/old", b"3")],
            [d(b"first"), f(b"first/" + OPQ), f(b"first/new", b"4"), d(b"last"), f(b"last/s/new", b"5"), f(b"last/" + OPQ)],
        ],
    ),
    Row(
        "opaque-and-not-named",
        [[d(b"d", mode=b"0000711\0", gid=b"0000007\0"), f(b"d/old", b"1")], [f(b"d/" + OPQ), f(b"d/new", b"2")], [f(b"d/newer", b"3")]],
    ),
    Row("an-opaque-top", [[f(b"a", b"1"), d(b"d"), f(b"d/a", b"2")], [f(OPQ), f(b"b", b"3")], [f(b"d/b", b"4")]]),
    Row(
        "types-change",
        [
            [
                f(b"file-dir", b"1"), d(b"dir-file"), f(b"dir-file/x", b"2"), f(b"file-link", b"3"), sym(b"link-file", b"file-link"),
                d(b"dir-link"), f(b"dir-link/x", b"4"), sym(b"link-fifo", b"file-link"), node(b"fifo-dir", b"6"),
            ],
            [
                d(b"file-dir"), f(b"file-dir/x", b"5"), f(b"dir-file", b"6"), sym(b"file-link", b"file-dir"), f(b"link-file", b"7"),
                sym(b"dir-link", b"file-dir"), node(b"link-fifo", b"6"), d(b"fifo-dir"), f(b"fifo-dir/x", b"8"),
            ],
        ],
    ),
    Row(
        "types-change-and-back",
        [
            [d(b"d", mode=b"0000700\0"), f(b"d/old", b"1"), f(b"f", b"2")],
            [f(b"d", b"3"), d(b"f"), f(b"f/x", b"4")],
            [d(b"d"), f(b"d/new", b"5"), f(b"f", b"6")],
        ],
    ),
    Row(
        "types-change-in-one-layer",
        [
            [d(b"d"), f(b"d/below", b"1"), f(b"f", b"2")],
            [f(b"d", b"3"), d(b"d"), f(b"d/new", b"4"), f(b"f", b"5"), f(b"f", b"6"), d(b"g"), f(b"g/x", b"7"), f(b"g", b"8")],
        ],
    ),
    Row(
        "hard-links",
        [
            [f(b"a", b"1"), hard(b"b", b"a"), d(b"d"), hard(b"d/c", b"b"), f(b"e", b"2"), hard(b"g", b"e"), sym(b"s", b"a"), hard(b"t", b"s")],
            [f(b"a", b"3"), f(WH + b"e"), f(b"x", b"4"), hard(b"d/c", b"x"), f(b"x", b"5")],
            [f(b"x", b"6"), hard(b"b", b"x"), hard(b"y", b"x")],
        ],
    ),
    Row(
        "attributes",
        [
            [
                d(b"d", mode=b"0000700\0", uid=b"0000001\0"), f(b"d/x", b"1"), f(b"f", b"2", mode=b"0000600\0"),
                d(b"kept", mode=b"0002750\0", gid=b"0000002\0"), f(b"kept/old", b"3"),
                with_xattrs(d(b"marked"), (b"user.m", b"1")), f(b"marked/old", b"4"),
                with_xattrs(f(b"capable", b"5", mode=b"0000755\0"), (b"security.capability", CAPABILITY)),
                with_xattrs(f(b"plain", b"6"), (b"user.old", b"1")),
            ],
            [
                d(b"d", mode=b"0001777\0", uid=b"0000003\0", mtime=b"00000000007\0"), f(b"f", b"7", mode=b"0006755\0", mtime=b"14000000000\0"),
                f(b"kept/new", b"8"), f(b"marked/new", b"9"), with_xattrs(f(b"plain", b"10"), (b"user.new", b"2")),
            ],
        ],
    ),
    Row(
        "aufs-names",
        [
            [f(b"gone", b"1"), d(b"d"), f(b"d/old", b"2"), f(b"wh.plnk", b"3")],
            [f(b".wh..wh.aufs"), d(b".wh..wh.orph"), hard(WH + b"gone", b".wh..wh.aufs"), hard(b"d/" + OPQ, b".wh..wh.aufs"), f(b"d/new", b"4")],
        ],
    ),
    Row(
        "devices-0-0",
        [[f(b"f", b"1"), d(b"d"), f(b"d/x", b"2")], [node(b"f", b"3"), node(b"d", b"3"), node(b"null", b"3", major=b"0000001\0", minor=b"0000003\0")]],
        {b"f": "overlayfs takes it for a whiteout", b"d": "the same"},
    ),
    Row(
        "owners-kept",
        [
            [
                d(b"d", uid=b"0000005\0", gid=b"0000006\0"), f(b"d/x"), f(b"f", uid=b"0000005\0"), d(b"hidden", uid=b"0000005\0"),
                d(b"group", uid=b"0000005\0", gid=b"0000006\0"), d(b"target", uid=b"0000007\0"), sym(b"link", b"target"),
            ],
            [
                d(b"d", uid=NOBODY, gid=NOBODY, mode=b"0000711\0"), f(b"f", uid=NOBODY), d(b"new", gid=NOBODY), f(WH + b"hidden"),
                d(b"hidden", uid=NOBODY), d(b"group", gid=NOBODY), d(b"twice", uid=b"0000005\0"), d(b"twice", uid=ALL_ONES),
                sym(b"s", b"f"), f(b"h", uid=NOBODY), hard(b"i", b"h"), d(b"link/in", uid=NOBODY),
            ],
            [d(b"d", uid=ALL_ONES)],
        ],
    ),
    Row(
        "renamed-directories",
        [
            [d(b"old", mode=b"0000750\0"), f(b"old/x", b"1"), d(b"old/s"), f(b"old/s/y", b"2"), d(b"taken"), f(b"taken/z", b"3")],
            [f(WH + b"old"), d(b"new", mode=b"0000750\0"), f(b"new/x", b"1"), d(b"new/s"), f(b"new/s/y", b"2")],
            [f(WH + b"taken"), f(WH + b"new"), d(b"taken"), f(b"taken/x", b"1"), f(b"old", b"4")],
        ],
    ),
    Row(
        "links-through-directories",
        [
            [
                d(b"d", mode=b"0000700\0"), f(b"d/old", b"1"), f(b"d/gone", b"2"), d(b"o"), f(b"o/old", b"3"),
                sym(b"rel", b"d"), sym(b"abs", b"/d"), sym(b"chain", b"rel"), sym(b"o-link", b"o"), d(b"deep"), sym(b"deep/up", b"../d"),
            ],
            [
                f(b"rel/new", b"4"), f(b"abs/" + WH + b"gone"), f(b"chain/s/newer", b"5"), f(b"deep/up/newest", b"6"),
                f(b"o-link/" + OPQ), f(b"o-link/new", b"7"), hard(b"to", b"rel/new"),
            ],
            [sym(b"rel", b"o"), f(b"rel/third", b"8"), f(b"chain/fourth", b"9")],
        ],
    ),
)  # fmt: skip


def tars() -> list[bytes]:
    """The layers of the image of all rows. A row with fewer layers than others is absent from the upper ones."""
    layers = zip_longest(
        *([b"".join(member(row.name.encode() + b"/") for member in layer) for layer in row.layers] for row in ROWS)
    )
    return [b"".join(part or b"" for part in layer) + END for layer in layers]
