"""What building a layer's EROFS image takes: from its TOC's document to the image under its name, synced, in a process of its own."""

from __future__ import annotations

import hashlib
import time

from bench.figure import Bar, Figure
from bench.place import ROUNDS, Place
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Chunk, Entry
from lazyfs.format.toc_json import encode_toc
from lazyfs.native.metadata import LayerMetadata, ensure_metadata

ENTRIES = 30_000
FILES_A_DIRECTORY = 29
MTIME_NS = 1_700_000_000_123_456_789


def measure(place: Place) -> list[Figure]:
    """Seconds for one layer, the start of the process included."""
    data = encode_toc(_entries(), None)
    digest = digest_of(data)
    seconds = []
    for number in range(ROUNDS):
        place.say(f"metadata: round {number + 1} of {ROUNDS}")
        store = place.new_folder()
        (store / "documents").mkdir()
        (store / "documents" / digest[7:]).write_bytes(data)
        start = time.perf_counter()
        ensure_metadata(store, [LayerMetadata(digest, 4096 * (ENTRIES + 1))])
        seconds.append(time.perf_counter() - start)
    return [Figure(f"EROFS image of {ENTRIES} entries", "s", tuple(seconds), Bar("<=", 0.5))]


def _entries() -> list[Entry]:
    """As Python packages are: directories of files of one chunk."""
    found: list[Entry] = []
    while len(found) < ENTRIES:
        folder = b"usr/lib/python3/dist-packages/package%d" % len(found)
        found.append(Entry(folder, "dir", mode=0o755, mtime_ns=MTIME_NS))
        for number in range(FILES_A_DIRECTORY):
            digest = hashlib.sha256(b"%d" % len(found)).digest()
            chunk = Chunk(0, 1000 + number, digest, 4096 * len(found), 512, 1)
            name = b"%s/module%d.py" % (folder, number)
            found.append(Entry(name, "reg", size=chunk.size, mode=0o644, mtime_ns=MTIME_NS, chunks=(chunk,)))
    return found[:ENTRIES]
