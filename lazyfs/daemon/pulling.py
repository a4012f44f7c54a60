"""Pulls into containerd that `lazyfs pull` has lazyfsd carry out.

Most of what a pull of a lazy image takes is to import Python's modules, and lazyfsd has them.
"""

from __future__ import annotations

import math
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

MODULES: Final = ("lazyfs.source.repository", "lazyfs.pull.pull")
"""What the first pull would wait for."""


async def pull_into_containerd(order: PullOrder, tell: Tell) -> Report:
    """What has become of the image: Pulled.report. Each layer is told when its snapshot is there, and how far each blob has come.

    Raises LazyfsError. Cancelled: what has arrived stays for a day, and the next pull goes on from there.
    """
    try:
        for module in MODULES:
            await trio.to_thread.run_sync(import_module, module)
    except ModuleNotFoundError as error:
        raise UsageError("this lazyfsd was installed without grpcio and protobuf", hint="Install lazyfs[containerd]") from error
    from lazyfs.pull.containerd import Containerd
    from lazyfs.pull.pull import PullOrder as Wanted
    from lazyfs.pull.pull import pull

    reference = parse_reference(order.reference)
    wanted = Wanted(reference, parse_platform(order.platform), order.snapshotter, order.complete)
    # It looks whether somebody listens.
    containerd = await trio.to_thread.run_sync(Containerd, Path(order.address), order.namespace)
    source = open_source(reference, AccessOptions(plain_http=order.plain_http))
    # What is told is small, and told at once.
    sending, receiving = trio.open_memory_channel[Report](math.inf)

    def received(blob: Descriptor, count: int) -> None:
        sending.send_nowait({"task": blob.digest, "done_bytes": count, "total": blob.size})

    try:
        with containerd:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell_all, receiving, tell)
                with sending:
                    pulled = await pull(
                        containerd, source, wanted, received, lambda layer: sending.send_nowait({"layer": layer.report()})
                    )
            return pulled.report()
    finally:
        with trio.CancelScope(shield=True):
            await source.aclose()


async def _tell_all(reports: trio.MemoryReceiveChannel[Report], tell: Tell) -> None:
    async for report in reports:
        await tell(report)
