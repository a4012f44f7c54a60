"""What tells two trees apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from tests.tree.walk import Record


class Difference(NamedTuple):
    """One fact on which two trees differ; `path` is printable, a missing path has the field `exists`."""

    path: str
    field: str
    left: object
    right: object

    def __str__(self) -> str:
        return f"{self.path}: {self.field} is {self.left!r} on the left, {self.right!r} on the right"


def compare(
    left: Mapping[bytes, Record],
    right: Mapping[bytes, Record],
    *,
    untimed: Collection[bytes] = (b".",),
    ignore: Collection[bytes] = (),
) -> list[Difference]:
    """Every difference, sorted by path.

    `untimed` are paths whose mtime nobody promised: the root, and directories that no layer names. `ignore` are paths
    left out with all that is below them.
    """
    found = []
    for path in sorted(left.keys() | right.keys()):
        if any(path == part or path.startswith(part + b"/") for part in ignore):
            continue
        shown = path.decode("utf-8", "backslashreplace")
        one, other = left.get(path), right.get(path)
        if one is None or other is None:
            found.append(Difference(shown, "exists", one is not None, other is not None))
            continue
        for field, here, there in zip(Record._fields, one, other, strict=True):
            if here != there and not (field == "mtime_ns" and path in untimed):
                found.append(Difference(shown, field, here, there))
    return found
