"""Files of a layer that are never shown (format/whiteout.py), kept for hard links that point to them.

The first such link becomes the file and the others link to it: they are one inode, as they are after unpacking.
"""

from __future__ import annotations

import msgspec

from lazyfs.format.entry import Entry
from lazyfs.format.sparse import Extent
from lazyfs.format.whiteout import link_key

Extents = tuple[Extent, ...]


class HiddenFiles:
    """The hidden files of one layer, whose entries are added in order."""

    def __init__(self) -> None:
        self._files: dict[bytes, tuple[Entry, Extents]] = {}
        self._shown: dict[bytes, bytes] = {}
        """Key of a file to the name that it is shown under."""
        self._keys: dict[bytes, bytes] = {}
        """The reverse of `_shown`."""

    def add(self, entry: Entry, extents: Extents = (), target: Entry | None = None) -> None:
        """Add an entry that is not shown. `target` is the file that it links to, if that file is known and shown."""
        found: tuple[Entry, Extents] | None = (target or entry, extents)
        if entry.type == "hardlink" and target is None:
            found = self._files.get(link_key(entry.link))
        if found is not None and entry.type != "dir":
            key = link_key(entry.name)
            self._files[key] = found
            self._shown.pop(key, None)

    def linked(self, link: Entry) -> tuple[Entry, Extents] | None:
        """The entry that a visible hard link becomes; None if it does not point to a hidden file."""
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
        """Another entry has taken this name: later links must not resolve to the hidden file."""
        key = self._keys.pop(name, None)
        if key is not None and self._shown.get(key) == name:
            del self._shown[key]
