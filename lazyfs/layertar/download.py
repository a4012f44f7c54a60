"""Fetches a layer's blob in one stream and unpacks it, keeping nothing of a failed attempt. For the converter and `lazyfs verify`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial

import trio

from lazyfs.errors import DigestMismatch
from lazyfs.format.budget import parsing_budget
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Descriptor
from lazyfs.layertar.spool import LARGEST_WINDOW, NeedsMore, Spool, unpack
from lazyfs.source.protocol import ImageSource

_log = logging.getLogger(__name__)


async def download(
    source: ImageSource, layer: Descriptor, diff_id: Digest, progress: Callable[[int], None], *, keep_blob: bool
) -> Spool:
    """The layer's tar and, with `keep_blob`, its blob, both verified. The caller closes it.

    A blob with wrong bytes is fetched once more. So is one that needs more memory than it gets at first, once that is available
    (format/budget.py).
    `progress` gets the count of blob bytes of each step, and a negative count for bytes that are fetched again. Raises SourceError, InvalidInput, LocalError. Cancelled: nothing is left behind.
    """
    counted = 0

    def step(count: int) -> None:
        nonlocal counted
        trio.from_thread.check_cancelled()
        counted += count
        progress(count)

    is_last_try = False
    careful = True
    while True:
        with ExitStack() as stack:
            spool = stack.enter_context(Spool(keep_blob))
            try:
                async with nullcontext() if careful else parsing_budget().hold(LARGEST_WINDOW):
                    await _fill(spool, source, layer, diff_id, step, careful=careful)
            except NeedsMore:
                careful = False
            except DigestMismatch as error:
                if is_last_try or spool.blob_is_right:
                    raise
                _log.info("%s: %s: fetching it once more", source.name, error)
                source.distrust(layer.digest)
                is_last_try = True
            else:
                stack.pop_all()
                return spool
        progress(-counted)
        counted = 0


async def _fill(
    spool: Spool, source: ImageSource, layer: Descriptor, diff_id: Digest, step: Callable[[int], None], *, careful: bool
) -> None:
    if not layer.size:
        return await trio.to_thread.run_sync(unpack, spool, _no_bytes, layer, diff_id, step)
    async with source.open_range(layer.digest, layer.size, 0, layer.size, urls=layer.urls) as stream:

        def pull(count: int) -> bytes | bytearray | memoryview:
            return trio.from_thread.run(stream.receive_exactly, count)

        await trio.to_thread.run_sync(partial(unpack, spool, pull, layer, diff_id, step, careful=careful))
    return None


def _no_bytes(_count: int) -> bytes:
    return b""
