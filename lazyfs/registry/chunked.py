"""Reads the chunked transfer coding as Go's net/http does (RFC 9112 §7.1).

The reference is Go 1.19, which the containerd and skopeo of that time are built with: the line with a chunk's size may end in a
bare LF and have trailing blanks, and extensions and trailers are skipped. The bytes of a chunk must end in CRLF. h11 rejects
the bare LF, so it is not used for these.
"""

from __future__ import annotations

import re
from typing import Final

from lazyfs.errors import BadAnswer

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t\r]*(?:;[^\n]*)?\Z")
_MAX_LINE: Final = 4 << 10
_MAX_TRAILER: Final = 64 << 10


class ChunkReader:
    """Decodes a chunked body as it arrives."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        """Offset in `_data` of the first byte that was not parsed."""
        self._left = 0
        """Bytes left of the current chunk."""
        self._ends_chunk = False
        """The CRLF after a chunk comes next."""
        self._trailer = 0
        """Bytes of the trailer so far, including line ends. The trailer follows the last chunk."""
        self._in_trailer = False
        self.is_over = False
        """The end of the body was reached."""
        self.is_odd = False
        """A line ended in a bare LF: another reader could disagree about where the body ends."""

    @property
    def is_clean(self) -> bool:
        """Whether the body has ended, nothing follows it, and every reader would agree."""
        return self.is_over and not self.is_odd and self._at == len(self._data)

    def feed(self, data: bytes | memoryview) -> None:
        """Add received bytes."""
        del self._data[: self._at]
        self._at = 0
        self._data += data

    def read(self) -> bytes:
        """The next decoded bytes; empty if more must arrive, or the body has ended. Raises BadAnswer."""
        while not self.is_over:
            if self._left:
                piece = bytes(self._data[self._at : self._at + self._left])
                self._at += len(piece)
                self._left -= len(piece)
                self._ends_chunk = not self._left
                return piece
            if self._ends_chunk:
                end = self._data[self._at : self._at + 2]
                if not b"\r\n".startswith(end):
                    raise _bad()
                if len(end) < 2:
                    return b""
                self._at += 2
                self._ends_chunk = False
            line = self._line()
            if line is None:
                return b""
            if self._in_trailer:
                self.is_over = not line
            else:
                found = _SIZE.match(line)
                if not found:
                    raise _bad()
                self._left = int(found[1], 16)
                self._in_trailer = not self._left
        return b""

    def _line(self) -> bytes | None:
        """The next line without its end; None if it is incomplete."""
        end = self._data.find(b"\n", self._at)
        size = (len(self._data) if end < 0 else end + 1) - self._at
        if size > _MAX_LINE or (self._in_trailer and self._trailer + size > _MAX_TRAILER):
            raise _bad()
        if end < 0:
            return None
        line = bytes(self._data[self._at : end])
        self._at = end + 1
        if self._in_trailer:
            self._trailer += size
        if not line.endswith(b"\r"):
            self.is_odd = True
        return line.removesuffix(b"\r")


def _bad() -> BadAnswer:
    return BadAnswer("the answer's body breaks the grammar of chunks")
