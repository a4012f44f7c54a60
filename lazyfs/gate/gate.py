"""The gate: answers the kernel when the data of a file is not in objects/.

overlayfs searches its data layers in order: objects/, the gate, arrived/. It keeps the first answer as long as it keeps its
inode. So an object that can be fetched in one go is fetched, verified and published under both names first, and the answer is
"not found": overlayfs goes on to arrived/, and no byte of that file passes through this process again.

The other answer is a real entry, whose reads come to the gate, chunk by chunk. It is given for

- an incomplete object of several chunks, which may be large, and of which the reader may want little;
- a caller that only changes metadata (caller.py), for which nothing is fetched;
- a fetch that fails or takes longer than LOOKUP_TIMEOUT: a caller cannot be killed in a lookup, but it can in a read. The reads
  try again.

An entry stays valid as long as the kernel knows it: names are derived from verified content, so an entry can never mean
anything else. `served` remembers the names of such objects for the refresher (lazyfs/daemon), which makes the overlays look
again when an object is complete.

A false "not found" would make an existing file disappear. It is answered only if `publish` or a kept chunk has just put the
object in place, or if no mounted image has the name. But overlayfs treats an error like "not found" and goes on: an image that
is not indexed yet, a lost connection. So after arrived/ comes one more data layer of the gate, `nowhere`, which returns an
error for every name: overlayfs uses the answer of the last layer, and does not keep an error.

The root holds only directories: `objects`, `nowhere`, and in place of `objects` one `record-N` for each recording mount.
"""

from __future__ import annotations

import logging
import os
import stat
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import trio

from lazyfs.errors import LazyfsError, Unreachable
from lazyfs.gate.announced import RecentlyAnnounced
from lazyfs.gate.catalog import Catalog, Supply
from lazyfs.gate.failover import Failover
from lazyfs.gate.inode import NOWHERE, OBJECTS, ROOT, inode_of, record_inode, record_number
from lazyfs.gate.latency import Latency
from lazyfs.store.content import is_name
from lazyfs.store.folders import GATE_NOWHERE, GATE_OBJECTS, recorded_by
from lazyfs.store.store import Store
from lazyfs.tasks import Failures

_log = logging.getLogger(__name__)

LOOKUP_TIMEOUT: Final = 2.0
"""Seconds after which a lookup that waits for the network is answered with a real entry."""
_LOOKUP_FAILOVER: Final = LOOKUP_TIMEOUT / 2
_READ_FAILOVER: Final = 5.0
"""Seconds to wait for a silent source while there is another one."""
_CALLER_TRIES: Final = 4
_CALLER_PAUSE: Final = 0.001
"""Seconds in which a caller that has sent its request falls asleep, once it gets a processor."""
_CATALOG_DEADLINE: Final = 60.0
"""Seconds for which a read waits for an image to be indexed."""
_DIRECTORIES: Final = {GATE_OBJECTS: OBJECTS, GATE_NOWHERE: NOWHERE}


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """The attributes of an inode of the gate."""

    ino: int
    mode: int
    size: int = 0
    nlink: int = 1


class Gate:
    """Answers lookups and reads, independent of FUSE. `touched` is called for each object that a recording mount looks up."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        touched: Callable[[int, str], None],
        is_metadata_call: Callable[[int], bool | None],
        failures: Failures,
    ) -> None:
        """`is_metadata_call`: for a thread id; None if it cannot be determined yet. `failures`: where surprises are counted."""
        self._store = store
        self._catalog = catalog
        self._touched = touched
        self._is_metadata_call = is_metadata_call
        # Separate threads, as readers of a store have: a lookup of a stored object never queues behind arriving ones.
        self._threads = trio.CapacityLimiter(16)
        self.announced = RecentlyAnnounced()
        """Objects that must not be evicted now."""
        self._failover = Failover(failures)
        self.served: set[str] = set()
        """Objects that were answered with an entry while they were incomplete."""
        self.reopened: set[str] = set()
        """Objects that were opened through the gate. An overlay keeps the entry as long as a file is open, whenever the entry
        was given."""
        self.counts: Counter[str] = Counter()
        """`published`, `entries`, `reads`, `errors`, `late` since this process began."""
        self.latency = Latency()
        """Latency of lookups that published an object."""

    async def lookup(self, directory: int, name: bytes, thread: int) -> Attributes | None:
        """The entry `name`; None: look in the next layer.

        Raises Unreachable for an object of an image that is not indexed yet, and for every name in `nowhere`. Cancelled: what
        is in flight still arrives.
        """
        text = name.decode("ascii", "replace")
        if directory == ROOT:
            return _directory_named(text)
        if directory == NOWHERE:
            self.counts["errors"] += 1
            raise Unreachable(f"{text} is not available: it is in no mounted image, or in one whose TOC could not be fetched yet")
        if not is_name(text):
            return None
        number = record_number(directory)
        if number is not None and not await self._changes_metadata_only(thread):
            self._touched(number, text)
        inode = inode_of(text)
        self.announced.note(text)
        with trio.move_on_after(LOOKUP_TIMEOUT) as timeout:
            supplies = await self._supplies(inode)
            if not supplies or supplies[0].pieces[0].content.name != text:
                return None
            # It was published after overlayfs looked, or a recording mount looks it up, which skips objects/.
            if os.path.exists(self._store.directory.objects + text) and await self._publish(supplies[0]):
                return None
            if await self._changes_metadata_only(thread):
                return self._entry(inode, supplies[0])
            if len(supplies[0].pieces) == 1:
                began = trio.current_time()
                if await self._fetch(supplies):
                    self.counts["published"] += 1
                    self.latency.note(trio.current_time() - began)
                    return None
            elif await self._publish(supplies[0]):
                return None
        if timeout.cancelled_caught:
            self.counts["late"] += 1
            supplies = self._catalog.find(inode)
            if not supplies:
                raise Unreachable(f"the image that {text} belongs to is not indexed yet")
        return self._entry(inode, supplies[0])

    async def attributes(self, inode: int) -> Attributes:
        """The attributes of an inode. Raises Unreachable if no mounted image has it."""
        if inode in (ROOT, *_DIRECTORIES.values()) or record_number(inode) is not None:
            return _directory(inode)
        return _file(inode, (await self._known(inode))[0])

    def opened(self, inode: int) -> None:
        """An object is opened through an entry, which may be old, and may have been given by an earlier process."""
        supplies = self._catalog.find(inode)
        if supplies:
            self.reopened.add(supplies[0].pieces[0].content.name)

    async def read(self, inode: int, offset: int, size: int) -> bytes | memoryview:
        """Bytes `[offset, offset + size)` of an object, fewer at its end.

        Raises LazyfsError if they cannot be fetched. Cancelled: nothing is left behind.
        """
        self.counts["reads"] += 1
        supplies = await self._known(inode)
        pieces = supplies[0].pieces
        end = min(offset + size, pieces[0].content.size)
        if offset >= end:
            return b""
        # The chunks of a content have the same sizes in every layer.
        first, last = (bisect_right(pieces, byte, key=lambda piece: piece.chunk.file_offset) for byte in (offset, end - 1))
        wanted = slice(first - 1, last)
        try:
            return await self._failover.run(
                supplies, wanted, partial(_read, wanted=wanted, offset=offset, end=end), _READ_FAILOVER
            )
        except LazyfsError:
            self.counts["errors"] += 1
            raise

    async def _changes_metadata_only(self, thread: int) -> bool:
        """Whether the caller only changes metadata. If that cannot be determined, it is assumed to read."""
        for _ in range(_CALLER_TRIES):
            answer = self._is_metadata_call(thread)
            if answer is not None:
                return answer
            await trio.sleep(_CALLER_PAUSE)
        return False

    async def _fetch(self, supplies: list[Supply]) -> bool:
        try:
            return await self._failover.run(supplies, slice(1), _fetch, _LOOKUP_FAILOVER)
        except LazyfsError as error:
            # The reads try again, and get the error.
            first = supplies[0]
            _log.info(
                "object %s of layer %s of %s is served through the gate: %s",
                first.pieces[0].content.name,
                first.layer.digest,
                first.fetcher.image,
                error,
            )
            return False

    async def _publish(self, supply: Supply) -> bool:
        publish = partial(self._store.publish, supply.pieces[0].content)
        return await trio.to_thread.run_sync(publish, limiter=self._threads)

    async def _supplies(self, inode: int) -> list[Supply]:
        """Waits while an image that may have the object is being indexed."""
        while True:
            supplies = self._catalog.find(inode)
            if supplies or self._catalog.is_complete:
                return supplies
            await self._catalog.wait_for_change()

    async def _known(self, inode: int) -> list[Supply]:
        with trio.move_on_after(_CATALOG_DEADLINE):
            supplies = await self._supplies(inode)
            if supplies:
                return supplies
        self.counts["errors"] += 1
        raise Unreachable(f"no mounted image has the object of inode {inode:x}, or its TOC could not be fetched")

    def _entry(self, inode: int, supply: Supply) -> Attributes:
        self.served.add(supply.pieces[0].content.name)
        self.counts["entries"] += 1
        return _file(inode, supply)


async def _fetch(supply: Supply) -> bool:
    return await supply.fetcher.fetch_object(supply.layer, supply.pieces[0])


async def _read(supply: Supply, wanted: slice, offset: int, end: int) -> bytes | memoryview:
    """Bytes `[offset, end)` of the object, which are in its pieces `wanted`."""
    parts: list[bytes | memoryview] = []
    for piece in supply.pieces[wanted]:
        start = offset - piece.chunk.file_offset
        length = min(end - offset, piece.chunk.size - start)
        parts.append(await supply.fetcher.read(supply.layer, piece, start, length))
        offset += length
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _directory_named(name: str) -> Attributes | None:
    if name in _DIRECTORIES:
        return _directory(_DIRECTORIES[name])
    number = recorded_by(name)
    return None if number is None else _directory(record_inode(number))


def _directory(inode: int) -> Attributes:
    return Attributes(inode, stat.S_IFDIR | 0o555, nlink=2)


def _file(inode: int, supply: Supply) -> Attributes:
    return Attributes(inode, stat.S_IFREG | 0o444, supply.pieces[0].content.size)
