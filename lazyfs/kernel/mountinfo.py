"""The kernel's table of mounts, as this process sees it.

Source: proc(5), /proc/PID/mountinfo. Reading it accesses no mount, so it cannot hang on one whose server is dead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class MountInfo(NamedTuple):
    """One line of the table."""

    path: Path
    device: str
    """`major:minor` of the file system's st_dev."""
    kind: str
    """The file system's type."""
    source: str
    options: tuple[str, ...]
    """The file system's own, in order, each `name` or `name=value`."""

    @property
    def number(self) -> int:
        """The device as in st_dev."""
        major, _, minor = self.device.partition(":")
        return os.makedev(int(major), int(minor))

    def values(self, option: str) -> list[str]:
        """All values that `option` was set to, in order."""
        return [value for name, _, value in (each.partition("=") for each in self.options) if name == option and value]


def mounts() -> list[MountInfo]:
    """All mounts, in the kernel's order: of two at one path the later one is visible."""
    found = []
    table = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    # A mount's source is free text. Of the characters that Python takes for the end of a line, the kernel escapes only this one.
    for line in table.rstrip("\n").split("\n"):
        before, _, after = line.partition(" - ")
        fields, (kind, source, options) = before.split(" "), after.split(" ", 2)
        # Commas inside values are escaped by octal numbers, as blanks are: split first.
        own = tuple(_unescape(option) for option in options.split(","))
        found.append(MountInfo(Path(_unescape(fields[4])), fields[2], kind, _unescape(source), own))
    return found


def mounted_at(path: Path) -> MountInfo | None:
    """What is mounted at `path`, absolute and without symbolic links: the uppermost mount there."""
    return next((mount for mount in reversed(mounts()) if mount.path == path), None)


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    # The octal numbers are bytes of the name, which need not be UTF-8.
    raw = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field.encode("utf-8", "surrogateescape").decode("latin-1"))
    return raw.encode("latin-1").decode("utf-8", "surrogateescape")
