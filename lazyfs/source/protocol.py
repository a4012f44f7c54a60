"""The seam between those who hold an image's bytes and those who want them.

A registry repository and an OCI layout on disk look the same from here: documents by tag or digest, byte ranges of
blobs, and, for the converter, a place to put both. Documents come back verified; blob bytes do not (a range of a
blob has no digest of its own): whoever asks for a range verifies it by what the TOC says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from lazyfs.format.digest import Digest


class Document(NamedTuple):
    """A manifest or index, as it lies in the registry."""

    media_type: str
    digest: Digest
    data: bytes


class ByteStream(Protocol):
    """Bytes in order, at the reader's pace (a reader that waits holds the sender back)."""

    async def receive_exactly(self, count: int) -> bytes | bytearray | memoryview:
        """The next `count` bytes, in a buffer of the caller's own.

        What breaks off or trickles goes on from another connection, and is not an error before five tries in a row have delivered nothing.

        Raises Unreachable then, BadAnswer when the range ends before `count` bytes, and what `open_range` raises when the rest is asked for.
        Cancelled: the stream is unusable and must be left.
        """
        ...


class RangeStream(ByteStream, Protocol):
    """The bytes of one range."""

    @property
    def received(self) -> int:
        """How many bytes have come so far, those of a `receive_exactly` that is still waiting included. It costs nothing to ask."""
        ...


class ImageSource(Protocol):
    """One repository of a registry, or one layout directory."""

    @property
    def name(self) -> str:
        """As a user would write it, without tag or credentials: `docker://HOST/REPO`, `oci:DIR`."""
        ...

    @property
    def authority(self) -> str:
        """Who answers, for what only his word vouches for: `docker://HOST`, whichever repository of it; `oci:DIR`."""
        ...

    async def document(self, reference: str) -> Document:
        """The manifest or index under a tag or a digest; verified where `reference` is a digest.

        Raises NotFound, Unauthorized, Unreachable, BadAnswer, DigestMismatch, InvalidManifest (over 4 MiB).
        """
        ...

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        """A whole blob of at most `limit` bytes (a config), verified. Raises as `document`."""
        ...

    async def connect_ahead(self, count: int) -> None:
        """Make ready for so many ranges at a time, while something else is waited for. What fails is told to whoever opens one."""
        ...

    def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, deadline: float = math.inf
    ) -> AbstractAsyncContextManager[RangeStream]:
        """Bytes `[start, end)` of a blob of `size` bytes, 0 <= start < end <= size.

        `deadline`: in trio's time, when the reader gives up. A server that asks for a pause is waited for, some minutes at most, where
        that ends before; else HeldOff is raised at once, which is Unreachable.

        Entering raises NotFound, Unauthorized, Unreachable, BadAnswer, and RangeIgnored where the server sends only the
        whole blob, and `start` is over 1 MiB in (less is skipped over). A range that starts at 0 and ends at `size` is
        never refused so. Leaving early is allowed, and costs the connection.
        """
        ...

    def distrust(self, digest: Digest) -> None:
        """Bytes of this blob were wrong: the next request for it uses no connection and no signed URL that may have brought them."""
        ...

    async def aclose(self) -> None:
        """Close connections. Nothing of the source may be used afterwards."""
        ...


class ImageSink(Protocol):
    """Where the converter puts an image."""

    @property
    def name(self) -> str: ...

    async def has_blob(self, digest: Digest, size: int) -> bool: ...

    async def mount_blob(self, digest: Digest, size: int, origin: ImageSource) -> bool:
        """Let the sink take the blob from `origin` by itself (same registry, same disk). False where it cannot."""
        ...

    async def put_blob(self, digest: Digest, path: Path, progress: Callable[[int], None]) -> None:
        """Send the file at `path`; `progress` gets the count of bytes of each step. Nothing partial is ever visible."""
        ...

    async def put_document(self, reference: str, document: Document) -> None:
        """Write a manifest or index under a tag or its digest; what it names must be there already."""
        ...

    async def aclose(self) -> None: ...
