"""Files of a layer that nobody shows (format/whiteout.py), for the hard links that name them.

The first such link becomes the file, and the others are links to that one: they are one inode, as they are to whoever unpacks.
"""

from __future__ import annotations

import msgspec

from lazyfs.format.entry import Entry
from lazyfs.format.sparse import Extent
from lazyfs.format.whiteout import link_key

Extents = tuple[Extent, ...]


class HiddenFiles:
    """Told of a layer's entries in their order."""

    def __init__(self) -> None:
        self._files: dict[bytes, tuple[Entry, Extents]] = {}
        self._shown: dict[bytes, bytes] = {}
        """Key of a file to the name that it is shown under."""
        self._keys: dict[bytes, bytes] = {}
        """And back."""

    def add(self, entry: Entry, extents: Extents = (), target: Entry | None = None) -> None:
        """An entry that is not shown; `target` is what it links to, where that is a file that is shown, and known."""
        found: tuple[Entry, Extents] | None = (target or entry, extents)
        if entry.type == "hardlink" and target is None:
            found = self._files.get(link_key(entry.link))
        if found is not None and entry.type != "dir":
            key = link_key(entry.name)
            self._files[key] = found
            self._shown.pop(key, None)

    def linked(self, link: Entry) -> tuple[Entry, Extents] | None:
        """What a hard link that is shown comes to; None where it names none of these files."""
        key = link_key(link.link)
        file = self._files.get(key)
        if file is None:
            return None
        name = self._shown.get(key, link.name)
        if name != link.name:
            self.replaced(link.name)
            return msgspec.structs.replace(link, link=name), ()
        self._shown[key], self._keys[name] = name, key
        return msgspec.structs.replace(file[0], name=name), file[1]

    def replaced(self, name: bytes) -> None:
        """Something else has this name from now on: no later link may lead to it."""
        key = self._keys.pop(name, None)
        if key is not None and self._shown.get(key) == name:
            del self._shown[key]
