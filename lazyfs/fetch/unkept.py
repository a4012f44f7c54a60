"""What has arrived and could not be kept: a full store serves it from memory, as far as a bound allows."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

from lazyfs.errors import LocalError

_log = logging.getLogger(__name__)

UNKEPT_BYTES: Final = 32 << 20
"""The kernel reads a 4 MiB chunk in 4 to 32 requests: without this, each would fetch it again."""


class Unkept:
    """Chunks by digest, the oldest dropped first. The newest always stays, however large it is."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[bytes, memoryview] = OrderedDict()
        self.size = 0
        """Bytes that it holds."""
        self.count = 0
        """Chunks that could not be kept so far."""

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._chunks

    def get(self, digest: bytes) -> memoryview | None:
        """The chunk, if it is remembered."""
        return self._chunks.get(digest)

    def remember(self, digest: bytes, data: memoryview, store_error: LocalError) -> None:
        """Hold a verified chunk that the store refused. The first store_error is logged."""
        if not self.count:
            _log.warning("serving what arrives without storing it: %s", store_error)
        self.count += 1
        if digest not in self._chunks:
            self._chunks[digest] = data
            self.size += len(data)
        while self.size > UNKEPT_BYTES and len(self._chunks) > 1:
            self.size -= len(self._chunks.popitem(last=False)[1])
