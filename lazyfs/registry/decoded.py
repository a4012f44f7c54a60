"""A body whose head tells no length: in chunks, or ended by the end of the connection. h11 finds its bytes.

Such answers are rare (a proxy in front of a registry), and cost a few copies more than a body with a length.
"""

from __future__ import annotations

from typing import Final

import h11

from lazyfs.errors import BadAnswer, Unreachable
from lazyfs.registry.connection import Connection
from lazyfs.registry.head import Head
from lazyfs.registry.odd_head import awaiting_answer

_BUFFER: Final = 64 << 10


class Decoded:
    """The bytes of one body, as Connection has them where there is a length."""

    def __init__(self, connection: Connection, head: Head) -> None:
        """The head has been received from `connection`, and nothing behind it. Raises BadAnswer for an encoding other than chunks."""
        self._connection = connection
        self._reader = awaiting_answer()
        self._here = memoryview(b"")
        self._buffer = memoryview(bytearray(_BUFFER))
        encoding = head.headers.get("transfer-encoding")
        field = b"" if encoding is None else b"Transfer-Encoding: " + encoding.encode("latin-1") + b"\r\n"
        self._reader.receive_data(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n")
        try:
            self._reader.next_event()
        except h11.RemoteProtocolError as error:
            raise BadAnswer(
                f"the answer comes in a transfer encoding that HTTP does not have: {(encoding or '')[:80]!r}"
            ) from error

    async def receive_into(self, view: memoryview) -> int:
        """See Connection. Raises BadAnswer as well, for chunks that break the grammar."""
        while not self._here:
            event = self._next()
            if isinstance(event, h11.Data):
                self._here = memoryview(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return 0
            else:
                count = await self._connection.receive_into(self._buffer)
                self._reader.receive_data(bytes(self._buffer[:count]))  # nothing: the connection has ended
        count = min(len(view), len(self._here))
        view[:count] = self._here[:count]
        self._here = self._here[count:]
        return count

    @property
    def is_over(self) -> bool:
        """Whether the end of the body has come, and nothing behind it. Waits for nothing; to be asked once."""
        if self._here:
            return False
        try:
            return isinstance(self._next(), h11.EndOfMessage) and self._reader.trailing_data == (b"", False)
        except (BadAnswer, Unreachable):
            return False

    def _next(self) -> object:
        try:
            return self._reader.next_event()
        except h11.RemoteProtocolError as error:
            if self._reader.trailing_data[1]:
                raise Unreachable("the connection ended within a chunk of the body") from error
            raise BadAnswer("the answer's body breaks the grammar of chunks") from error
