"""What a file consists of, named by nothing but verified content.

A file of one chunk is named by that chunk's digest and size. A file of several is named by a hash over their sizes and digests
in order: the digests are what gets verified when bytes arrive, while the digest of the whole file is only a TOC's
claim, and a name made of claims would let one image put its bytes under another's files. A size is in each name because it
is needed before the bytes are here: who lies about one speaks of an object that nobody else has. The two kinds differ in
their prefix, and the list's hash begins with a text of its own, so no file's bytes can be chosen to collide with a list.
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
    """What a regular file that is not empty consists of.

    Two are equal where their names are: a name is a hash of all that the content is, and a file may have a million chunks to compare.
    """

    name: str
    """Of its object: `sha256-<hex>-<size>` (one chunk, its digest) or `chunks-<hex>` (several, the hash of their list)."""
    size: int
    offsets: tuple[int, ...]
    """Where each chunk starts in the file."""
    digests: tuple[bytes, ...]
    """sha256 of each chunk, 32 raw bytes."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def chunk_size(self, index: int) -> int:
        """Bytes in chunk `index`, 0 <= index < len(offsets)."""
        end = self.offsets[index + 1] if index + 1 < len(self.offsets) else self.size
        return end - self.offsets[index]


def content_of(chunks: Sequence[Chunk]) -> Content:
    """The content that a file's chunks make. Raises ValueError unless they follow each other from 0 without a gap."""
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
    """The name of the object that is one chunk."""
    return f"{SINGLE}{digest.hex()}-{size}"


def list_name(chunks: Iterable[tuple[int, bytes]]) -> str:
    """The name of the object that is these chunks, each given as (size, digest), in order."""
    hashed = hashlib.sha256(_LIST_DOMAIN)
    for size, digest in chunks:
        hashed.update(size.to_bytes(8, "little") + digest)
    return SEVERAL + hashed.hexdigest()


def is_single(name: str) -> bool:
    """Whether the object of that name is one chunk."""
    return name.startswith(SINGLE)


def is_name(name: str) -> bool:
    """Whether `name` can be an object's: asked of whatever comes back from disk before it becomes a path."""
    return _NAME.match(name) is not None
