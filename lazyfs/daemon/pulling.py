"""Pulls into containerd that `lazyfs pull` has lazyfsd carry out.

Most of what a pull of a lazy image takes is to import Python's modules, and lazyfsd has them. It takes on no more than a few at a time,
because they share threads with those who start containers: whoever is not told at once that his order is accepted pulls by himself.
"""

from __future__ import annotations

import logging
import math
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Final

import trio

from lazyfs.daemon.control import Tell
from lazyfs.daemon.orders import PullOrder, Report
from lazyfs.errors import UsageError
from lazyfs.format.manifest import Descriptor, parse_platform
from lazyfs.registry.access import AccessOptions
from lazyfs.source.open import open_source
from lazyfs.source.reference import parse_reference

_log = logging.getLogger(__name__)

MODULES: Final = ("lazyfs.source.repository", "lazyfs.pull.pull")
"""What the first pull would wait for."""
_AT_ONCE: Final = 4


class Pulling:
    """All pulls of a daemon."""

    def __init__(self) -> None:
        self._under_way = 0

    async def pull(self, order: PullOrder, tell: Tell) -> Report:
        """What has become of the image: Pulled.report. Each layer is told when its snapshot is there, and how far each blob has come.

        Raises LazyfsError. Cancelled: what has arrived stays for a day, and the next pull goes on from there.
        """
        if self._under_way >= _AT_ONCE:
            raise UsageError(f"lazyfsd has {_AT_ONCE} pulls under way")
        self._under_way += 1
        try:
            return await _pull(order, tell)
        finally:
            self._under_way -= 1


async def _pull(order: PullOrder, tell: Tell) -> Report:
    for module in MODULES:
        await trio.to_thread.run_sync(import_module, module)
    from lazyfs.pull.containerd import Containerd
    from lazyfs.pull.pull import PullOrder as Wanted
    from lazyfs.pull.pull import pull

    await tell({"accepted": True})
    _log.info("pulls %s into %s", order.reference, order.address)
    reference = parse_reference(order.reference)
    wanted = Wanted(reference, parse_platform(order.platform), order.snapshotter, order.complete)
    async with AsyncExitStack() as stack:
        source = open_source(reference, AccessOptions(plain_http=order.plain_http))
        stack.push_async_callback(source.aclose)
        # To open and to close it waits for others.
        containerd = await trio.to_thread.run_sync(Containerd, Path(order.address), order.namespace)
        stack.push_async_callback(trio.to_thread.run_sync, containerd.close)
        reports = _Reports(tell)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reports.tell_all)
            try:
                pulled = await pull(
                    containerd, source, wanted, reports.received, lambda layer: reports.add({"layer": layer.report()})
                )
            finally:
                reports.end()
        return pulled.report()


class _Reports:
    """On their way to a client who may be slow, or stopped: whatever he has not read when the pull ends, he reads in the last one."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._sending, self._receiving = trio.open_memory_channel[Report](math.inf)
        self._ended = False

    def add(self, report: Report) -> None:
        """It waits for its turn."""
        self._sending.send_nowait(report)

    def received(self, blob: Descriptor, count: int) -> None:
        """So many bytes of it are there."""
        self.add({"task": blob.digest, "done_bytes": count, "total": blob.size})

    def end(self) -> None:
        """Nothing is told from now on."""
        self._ended = True
        self._sending.close()

    async def tell_all(self) -> None:
        """Until the end."""
        async for report in self._receiving:
            if not self._ended:
                await self._tell(report)
