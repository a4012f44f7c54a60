"""A body without a Content-Length: chunked, or ended by the end of the connection.

Such responses are rare (proxies in front of registries send them), and cost a few copies more.
"""

from __future__ import annotations

from typing import Final

from lazyfs.errors import BadAnswer, Unreachable
from lazyfs.registry.chunked import ChunkReader
from lazyfs.registry.connection import Connection
from lazyfs.registry.head import Head

_BUFFER: Final = 64 << 10


class DecodedBody:
    """The decoded bytes of one body, with Connection's interface."""

    def __init__(self, connection: Connection, head: Head) -> None:
        """The head was received from `connection`, and nothing after it. Raises BadAnswer for a transfer coding other than
        chunked."""
        self._connection = connection
        self._decoded = memoryview(b"")
        self._buffer = memoryview(bytearray(_BUFFER))
        encoding = head.headers.get("transfer-encoding")
        if encoding is not None and encoding.strip().lower() != "chunked":
            raise BadAnswer(f"the answer has an unknown transfer encoding: {encoding[:80]!r}")
        self._chunks = None if encoding is None else ChunkReader()
        """None if the end of the connection ends the body."""

    async def receive_into(self, view: memoryview) -> int:
        """See Connection. Also raises BadAnswer for invalid chunks."""
        if self._chunks is None:
            return await self._connection.receive_into(view)
        while not self._decoded:
            self._decoded = memoryview(self._chunks.read())
            if self._decoded:
                break
            if self._chunks.is_over:
                return 0
            count = await self._connection.receive_into(self._buffer)
            if not count:
                raise Unreachable("the connection ended within a chunk of the body")
            self._chunks.feed(self._buffer[:count])
        count = min(len(view), len(self._decoded))
        view[:count] = self._decoded[:count]
        self._decoded = self._decoded[count:]
        return count

    @property
    def is_over(self) -> bool:
        """Whether the body has ended and nothing follows it. Does not wait. To be asked once."""
        if self._decoded or self._chunks is None:
            return False
        try:
            return not self._chunks.read() and self._chunks.is_clean
        except BadAnswer:
            return False
