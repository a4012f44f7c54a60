"""The interface between sources of images and those who read them.

A registry's repository and an OCI layout on disk look the same: documents by tag or digest, byte ranges of blobs, and, for the
converter, writing both. Documents are verified; blob bytes are not (a range of a blob has no digest of its own), so the reader
of a range verifies it against the TOC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from lazyfs.format.digest import Digest


class Document(NamedTuple):
    """A manifest or index, as the registry stores it."""

    media_type: str
    digest: Digest
    data: bytes


class ByteStream(Protocol):
    """Bytes in order, at the reader's pace: a reader that waits holds back the sender."""

    async def receive_exactly(self, count: int) -> bytes | bytearray | memoryview:
        """The next `count` bytes, in a new buffer.

        A stream that breaks off or trickles continues over another connection. That is an error only when five tries in a row
        have delivered nothing.

        Raises Unreachable then, BadAnswer if the range ends before `count` bytes, and what `open_range` raises when the rest is
        requested. Cancelled: the stream is unusable and must be left.
        """
        ...


class RangeStream(ByteStream, Protocol):
    """The bytes of one range."""

    @property
    def received(self) -> int:
        """Bytes received so far, including those of a `receive_exactly` that is still waiting. Costs nothing."""
        ...


class ImageSource(Protocol):
    """One repository of a registry, or one layout directory."""

    @property
    def name(self) -> str:
        """The name without tag or credentials, as a user would write it: `docker://HOST/REPO`, `oci:DIR`."""
        ...

    @property
    def authority(self) -> str:
        """Who has to be trusted for what no digest covers: `docker://HOST`, the same for all its repositories; `oci:DIR`."""
        ...

    async def document(self, reference: str) -> Document:
        """The manifest or index under a tag or a digest. It is verified if `reference` is a digest.

        Raises NotFound, Unauthorized, Unreachable, BadAnswer, DigestMismatch, InvalidManifest (over 4 MiB).
        """
        ...

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        """A whole, verified blob of at most `limit` bytes (a config). Raises as `document`."""
        ...

    async def connect_ahead(self, count: int) -> None:
        """Prepare for this many concurrent ranges, while the caller waits for something else. Errors are raised when a range is
        opened."""
        ...

    def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AbstractAsyncContextManager[RangeStream]:
        """Bytes `[start, end)` of a blob of `size` bytes, 0 <= start < end <= size.

        `urls`: where else the blob may be, as its descriptor says. They are asked where the source does not serve it (foreign.py).

        `deadline`: when the reader gives up, on trio's clock. If a server asks for a pause that ends before, it is waited for,
        some minutes at most; else HeldOff, which is Unreachable, is raised at once.

        Entering raises NotFound, Unauthorized, Unreachable, BadAnswer, and RangeIgnored if the server sends only the whole blob
        and `start` is more than 1 MiB in (less is skipped). A range from 0 to `size` never raises RangeIgnored. Leaving early
        is allowed, and costs the connection.
        """
        ...

    def distrust(self, digest: Digest) -> None:
        """Bytes of this blob were wrong: the next request for it uses no connection or signed URL that may have delivered them."""
        ...

    async def aclose(self) -> None:
        """Close connections. The source must not be used afterwards."""
        ...


class ImageSink(Protocol):
    """Where the converter writes an image."""

    @property
    def name(self) -> str: ...

    async def has_blob(self, digest: Digest, size: int) -> bool: ...

    async def mount_blob(self, digest: Digest, size: int, origin: ImageSource) -> bool:
        """Let the sink take the blob from `origin` itself (same registry, same disk). Returns False if it cannot."""
        ...

    async def put_blob(self, digest: Digest, path: Path, progress: Callable[[int], None]) -> None:
        """Send the file at `path`. `progress` gets the number of bytes of each step. A partial blob is never visible."""
        ...

    async def put_document(self, reference: str, document: Document) -> None:
        """Write a manifest or index under a tag or its digest. Everything that it names must exist already."""
        ...

    async def aclose(self) -> None: ...
