"""Files of an image that happen to have a name that belongs to the format.

Every eStargz layer has a `stargz.index.json` and a landmark in its root. They are never shown, and a conversion replaces
them. A layer that no converter wrote may have files with these names as well: then part of the image is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from lazyfs.errors import show
from lazyfs.format.entry import LANDMARK_CONTENT, OWN_NAMES, TOC_NAME
from lazyfs.format.tar import ReadAt, TarMember
from lazyfs.layertar.content import read_content
from lazyfs.layertar.plan import Planned

_TOC: Final = re.compile(rb'\s*\{\s*"version"\s*:\s*1\s*,\s*"entries"\s*:\s*\[')
"""The start of a TOC, as every writer of the format writes it."""
_LOOK: Final = 256


def own_files(members: Sequence[TarMember], read_at: ReadAt) -> tuple[bytes, ...]:
    """Blocking. The sorted names in `members` that are left out although they are not the format's files."""
    found = {member.entry.name: member for member in members if member.entry.name.partition(b"/")[0] in OWN_NAMES}
    return tuple(sorted(name for name, member in found.items() if not _is_of_the_format(member, read_at)))


def own_note(names: Sequence[bytes]) -> str:
    """The message for the user; empty if there are none."""
    if not names:
        return ""
    return (
        f"left out what the image has under names that belong to the format: {', '.join(show(b'/' + name) for name in names[:3])}"
    )


def _is_of_the_format(member: TarMember, read_at: ReadAt) -> bool:
    entry = member.entry
    if entry.type != "reg" or entry.name not in OWN_NAMES:
        return False
    head = read_content(Planned(entry, member.extents), 0, min(entry.size, _LOOK), read_at)
    if entry.name == TOC_NAME:
        return _TOC.match(head) is not None
    return entry.size == len(LANDMARK_CONTENT) and head == LANDMARK_CONTENT
