"""The name of a file's content, derived from verified digests only.

The name of a file of one chunk is that chunk's digest and size. The name of a file of several chunks is a hash over their sizes
and digests in order. Only chunk digests are verified when bytes arrive. The digest of the whole file is just a claim of the
TOC, and a name made of claims would let one image put its bytes under another image's files. The name contains the size,
because the size is needed before the bytes are in the store; with a false size, it names an object that no other image has. The
two kinds have different prefixes, and the hash of a list begins with a constant text, so no file content can be made to collide
with a list.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import msgspec

from lazyfs.format.entry import Chunk

SINGLE = "sha256-"
SEVERAL = "chunks-"

_LIST_DOMAIN = b"lazyfs list of chunks, 1\n"
_NAME = re.compile(r"(?:sha256-[0-9a-f]{64}-[1-9][0-9]{0,18}|chunks-[0-9a-f]{64})\Z")


class Content(msgspec.Struct, frozen=True, gc=False, eq=False):
    """The content of a regular file that is not empty.

    Contents are equal if their names are: the name is a hash of everything else, and a file may have a million chunks to
    compare.
    """

    name: str
    """Name of the object: `sha256-<hex>-<size>` (one chunk, its digest) or `chunks-<hex>` (several chunks, the hash of their
    list)."""
    size: int
    offsets: tuple[int, ...]
    """Offset of each chunk in the file."""
    digests: tuple[bytes, ...]
    """sha256 of each chunk, 32 raw bytes."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def chunk_size(self, index: int) -> int:
        """Size in bytes of chunk `index`, 0 <= index < len(offsets)."""
        end = self.offsets[index + 1] if index + 1 < len(self.offsets) else self.size
        return end - self.offsets[index]


def content_of(chunks: Sequence[Chunk]) -> Content:
    """The content of a file with these chunks. Raises ValueError unless they are contiguous from offset 0."""
    if not chunks:
        raise ValueError("a file without chunks has no content to name")
    end = 0
    for chunk in chunks:
        if chunk.file_offset != end or chunk.size <= 0 or len(chunk.digest) != 32:
            raise ValueError(f"chunk at {chunk.file_offset} of {chunk.size} bytes does not follow on {end}")
        end += chunk.size
    digests = tuple(chunk.digest for chunk in chunks)
    name = single_name(digests[0], end) if len(chunks) == 1 else list_name((chunk.size, chunk.digest) for chunk in chunks)
    return Content(name=name, size=end, offsets=tuple(chunk.file_offset for chunk in chunks), digests=digests)


def single_name(digest: bytes, size: int) -> str:
    """Name of an object of one chunk."""
    return f"{SINGLE}{digest.hex()}-{size}"


def list_name(chunks: Iterable[tuple[int, bytes]]) -> str:
    """Name of an object of several chunks, given in order as (size, digest)."""
    hashed = hashlib.sha256(_LIST_DOMAIN)
    for size, digest in chunks:
        hashed.update(size.to_bytes(8, "little") + digest)
    return SEVERAL + hashed.hexdigest()


def is_single(name: str) -> bool:
    """Whether this names an object of one chunk."""
    return name.startswith(SINGLE)


def is_name(name: str) -> bool:
    """Whether `name` is a valid object name. Checked for every name that comes from disk, before it becomes part of a path."""
    return _NAME.match(name) is not None
