"""Chunks that the store has no room for. They are served from memory, up to a limit."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

from lazyfs.errors import LocalError
from lazyfs.format.digest import Digest

_log = logging.getLogger(__name__)

UNKEPT_BYTES: Final = 32 << 20
"""The kernel reads a 4 MiB chunk in 4 to 32 requests; without this, each would fetch it again."""


class Unkept:
    """Chunks by digest. The oldest is dropped first; the newest always stays, however large it is."""

    def __init__(self, image: str) -> None:
        """`image` names it in the log."""
        self._image = image
        self._chunks: OrderedDict[bytes, memoryview] = OrderedDict()
        self.size = 0
        """Bytes held."""
        self.count = 0
        """Number of chunks so far that could not be stored."""

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._chunks

    def get(self, digest: bytes) -> memoryview | None:
        """The chunk, if it is held."""
        return self._chunks.get(digest)

    def remember(self, digest: bytes, data: memoryview, store_error: LocalError, layer: Digest) -> None:
        """Hold a verified chunk of `layer` that the store refused. The first refusal is logged."""
        if not self.count:
            _log.warning("serving layer %s of %s from memory without storing it: %s", layer, self._image, store_error)
        self.count += 1
        if digest not in self._chunks:
            self._chunks[digest] = data
            self.size += len(data)
        while self.size > UNKEPT_BYTES and len(self._chunks) > 1:
            self.size -= len(self._chunks.popitem(last=False)[1])
