"""Pulls into containerd, executed by lazyfsd for `lazyfs pull`, or by `lazyfs pull` itself in the same way.

Most of the time of a lazy pull is spent on imports, which lazyfsd has done. It accepts only a few pulls at a time, because they share threads
with starting containers: a client whose order is not accepted pulls by itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from lazyfs.daemon.control import Notify
from lazyfs.errors import UsageError
from lazyfs.format.manifest import Descriptor
from lazyfs.format.platform import parse_platform
from lazyfs.registry.access import AccessOptions
from lazyfs.reports.orders import PullOrder
from lazyfs.reports.results import LayerResult, PullResult
from lazyfs.reports.steps import Accepted, Note, Progress, Step
from lazyfs.source.open import open_source
from lazyfs.source.reference import parse_reference

if TYPE_CHECKING:
    from lazyfs.pull.layers import PulledLayer
    from lazyfs.pull.pull import PulledImage

_log = logging.getLogger(__name__)

MODULES: Final = ("lazyfs.source.repository", "lazyfs.pull.pull")
"""Imported ahead of the first pull."""
_AT_ONCE: Final = 4


class PullHandler:
    """Executes the pulls of a daemon."""

    def __init__(self) -> None:
        self._active = 0

    async def pull(self, order: PullOrder, notify: Notify) -> PullResult:
        """As `pull_image`; steps are sent to the client. Raises LazyfsError."""
        if self._active >= _AT_ONCE:
            raise UsageError(f"lazyfsd has {_AT_ONCE} pulls under way")
        self._active += 1
        try:
            await trio.to_thread.run_sync(import_pull_modules)
            await notify(Accepted())
            _log.info("pulling %s into %s", order.reference, order.address)
            sending, receiving = trio.open_memory_channel[Step](math.inf)
            ended = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_forward, receiving, notify, ended)
                with sending:
                    report = await pull_image(order, AccessOptions(plain_http=order.plain_http), sending.send_nowait)
                    ended.set()
            return report
        finally:
            self._active -= 1


async def _forward(reports: trio.MemoryReceiveChannel[Step], notify: Notify, ended: trio.Event) -> None:
    """Send steps to a client that may be slow or stopped. After the pull has ended, progress is dropped and only notes are sent."""
    async for report in reports:
        if isinstance(report, Note) or not ended.is_set():
            await notify(report)


def import_pull_modules() -> None:
    """Blocking, 0.1 s the first time. Raises UsageError: grpcio is missing."""
    try:
        for module in MODULES:
            import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"grpc", "google"}:
            raise
        raise UsageError("lazyfs pull needs grpcio and protobuf", hint="Install lazyfs[containerd]") from error


async def pull_image(order: PullOrder, access: AccessOptions, show: Callable[[Step], None]) -> PullResult:
    """Pull an image. `show` gets the progress of each blob, and a note for each layer that is not lazy.

    Raises LazyfsError. Cancelled: what has arrived stays for a day, and the next pull resumes there.
    """
    from lazyfs.pull.containerd import Containerd
    from lazyfs.pull.pull import PullRequest, pull

    def received(blob: Descriptor, count: int) -> None:
        show(Progress(blob.digest[7:19], count, blob.size))

    def made(layer: PulledLayer) -> None:
        if layer.reason:
            show(of_layer(layer))

    reference = parse_reference(order.reference)
    wanted = PullRequest(reference, parse_platform(order.platform), order.snapshotter, order.complete)
    source = open_source(reference, access)
    try:
        # Connecting and closing block.
        containerd = await trio.to_thread.run_sync(Containerd, Path(order.address), order.namespace)
        try:
            return result_of(await pull(containerd, source, wanted, received, made))
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(containerd.close)
    finally:
        with trio.CancelScope(shield=True):
            await source.aclose()


def of_layer(layer: PulledLayer) -> Note:
    """The note about a layer that is not lazy."""
    return Note(f"layer {layer.digest} {layer.reason}")


def result_of(pulled: PulledImage) -> PullResult:
    """The report of a pulled image."""
    layers = tuple(LayerResult(*layer, not layer.reason) for layer in pulled.layers)
    return PullResult(pulled.name, pulled.digest, pulled.manifest_digest, layers)
