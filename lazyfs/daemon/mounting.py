"""Executes orders to mount and unmount.

A client may go away before it gets its result, and the process that executes an order may die. A mount that no client knows of is unmounted
again, and an order that is sent again (identified by its ticket) is answered without a second mount.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from lazyfs.daemon.control import Notify
from lazyfs.daemon.mounts import Mounts
from lazyfs.daemon.overlays import Overlays
from lazyfs.daemon.state import MountRecord, Row
from lazyfs.errors import MountFailed, NotNative, Unreachable
from lazyfs.fetch.background import measure_missing
from lazyfs.live.image import ImageRequest, Images, LiveImage
from lazyfs.native.probe import ProbeResult
from lazyfs.reports.orders import MountOrder, UnmountOrder
from lazyfs.reports.results import MountResult, UnmountResult
from lazyfs.reports.steps import Progress
from lazyfs.source.reference import Reference, parse_reference
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

_REPORT_PAUSE: Final = 0.25
_END_DEADLINE: Final = 5.0
"""Seconds that an unmount waits for the unmount event."""


class MountHandler:
    """Executes orders, at most one for a directory at a time."""

    def __init__(self, store: Store, images: Images, mounts: Mounts, overlays: Overlays) -> None:
        self._store = store
        self._images = images
        self._mounts = mounts
        self._overlays = overlays
        self._busy: set[str] = set()
        self._probe_result: ProbeResult | None = None
        self.has_gate = True

    async def mount(self, order: MountOrder, notify: Notify) -> MountResult:
        """Mount as ordered. Raises LazyfsError; nothing is left then, except what has arrived in the store, or, if the order waits for the
        background fetch, an incomplete mount. Cancelled: unmounted again, unless the mount is in use.
        """
        for mount in self._mounts.live.values():
            if mount.row.mount.ticket == order.ticket:
                return await self._report_again(mount.row, order, notify)
        async with self._exclusive(order.directory, order.upper):
            await self._check(order)
            live = await self._images.acquire(image_of(order), order.creds, notify, lazy_only=order.lazy_only)
            try:
                row = await self._mounts.make(_record_of(order, live), live)
            except BaseException:
                live.leave()
                live.give_up()
                raise
            try:
                return await self._report(row, live, order, notify)
            except trio.Cancelled:
                await self._undo(row)
                live.give_up()
                raise

    async def _report_again(self, row: Row, order: MountOrder, notify: Notify) -> MountResult:
        """Answer an order that a process executed before it died; its image may not be live yet."""
        live = await self._images.acquire(image_of(row.mount), order.creds, notify, lazy_only=False)
        try:
            return await self._report(row, live, order, notify)
        finally:
            live.leave()

    async def _undo(self, row: Row) -> None:
        """Unmount again: the client that ordered the mount has gone."""
        mount = self._mounts.live.get(row.number)
        if mount is None:
            return
        with trio.CancelScope(shield=True), trio.move_on_after(_END_DEADLINE):
            try:
                await self._mounts.unmount(row.mount.directory, lazy=False)
            except MountFailed as error:
                _log.warning("the order for a mount was cancelled, but its mount cannot be removed: %s", error)
            else:
                await mount.ended.wait()

    async def unmount(self, order: UnmountOrder) -> UnmountResult:
        """Unmount as ordered and wait for it. Raises MountFailed if it is not a mount of this lazyfsd, or busy."""
        directory = Path(order.directory)
        async with self._exclusive(order.directory):
            found = [mount for mount in self._mounts.live.values() if mount.row.mount.directory == order.directory]
            if not found:
                raise MountFailed(f"{directory} is not a mount of this lazyfsd", hint="`lazyfs status` lists the mounts")
            mount = found[-1]
            if order.lazy:  # marked first: after a crash in between, a detached mount could not be found
                await self._mounts.mark(mount.row.number, "detached")
            try:
                await self._mounts.unmount(order.directory, lazy=order.lazy)
            except MountFailed:
                if order.lazy:
                    await self._mounts.mark(mount.row.number, "mounted")
                raise
            with trio.move_on_after(0 if order.lazy else _END_DEADLINE):
                await mount.ended.wait()
        return UnmountResult(order.directory)

    async def _check(self, order: MountOrder) -> None:
        directory = Path(order.directory)
        if not self.has_gate:
            raise MountFailed(
                f"the lazyfsd of {self._store.directory.path} is stopping, and waits for processes that still use a detached mount",
                hint="Stop those processes, or use another --store",
            )
        for mount in self._mounts.live.values():
            if order.upper and mount.row.mount.upper == order.upper:
                detached = ", which was detached and is still in use" if mount.row.phase == "detached" else ""
                raise MountFailed(
                    f"{order.upper} takes the changes of the mount at {mount.row.mount.directory}{detached}",
                    hint="Two mounts cannot write to one upper directory: wait for the end of that one, or name another",
                )
        mounted = await trio.to_thread.run_sync(self._overlays.find, directory)
        if mounted is not None:
            raise MountFailed(f"{directory} is a lazyfs mount already", hint=f"Unmount it first: lazyfs umount {directory}")
        if self._probe_result is None:
            self._probe_result = await trio.to_thread.run_sync(self._overlays.probe)
        if not self._probe_result.native:
            raise NotNative(
                f"this machine cannot mount natively: {self._probe_result.reason}", hint="`lazyfs mount --mode portable` can"
            )

    async def _report(self, row: Row, live: LiveImage, order: MountOrder, notify: Notify) -> MountResult:
        """The result for an existing mount, if ordered so after the image is complete."""
        if order.background == "wait":
            await _wait_until_complete(live, self._store, notify)
        config = await trio.to_thread.run_sync(self._store.document, live.image.manifest.config.digest)
        text = (config or b"").decode("utf-8", "replace")
        return MountResult(row.mount.directory, row.mount.image, "native", text, os.getpid())

    @asynccontextmanager
    async def _exclusive(self, *directories: str) -> AsyncIterator[None]:
        """Lock directories against other orders; empty names are ignored. Raises MountFailed if one is locked."""
        names = set(directories) - {""}
        for name in names & self._busy:
            raise MountFailed(f"another order for {name} is in progress", hint="Wait for it")
        self._busy |= names
        try:
            yield
        finally:
            self._busy -= names


def image_of(mount: MountOrder | MountRecord) -> ImageRequest:
    """The image of an order, or of a row: the image of a row was mounted, so its bounds were checked before."""
    return ImageRequest(
        mount.reference, mount.platform, mount.plain_http, mount.background != "off", isinstance(mount, MountRecord)
    )


def _record_of(order: MountOrder, live: LiveImage) -> MountRecord:
    """The record of an order: with the digest that the tag names now, without passwords."""
    reference = parse_reference(order.reference)
    return MountRecord(
        directory=order.directory,
        ticket=order.ticket,
        image=live.image.name,
        reference=str(Reference(reference.transport, reference.location, reference.tag, live.image.digest)),
        platform=order.platform,
        plain_http=order.plain_http,
        background=order.background,
        upper=order.upper,
        volatile=order.volatile,
        record=order.record,
    )


async def _wait_until_complete(live: LiveImage, store: Store, notify: Notify) -> None:
    """Wait until the image is complete. Raises SourceError if the rest cannot be fetched."""
    while not live.is_known:
        with trio.move_on_after(_REPORT_PAUSE):
            await live.known()
        if live.failure:
            raise Unreachable(f"{live.image.name} is mounted, but {live.failure}")
    total = (await trio.to_thread.run_sync(measure_missing, store, live.blobs)).size
    fetcher = live.fetcher
    assert fetcher is not None
    before = fetcher.statistics().unpacked
    while not live.rest_ended.is_set():
        done = min(total, fetcher.statistics().unpacked - before)
        await notify(Progress("fetching", done, total, live.trouble))
        with trio.move_on_after(_REPORT_PAUSE):
            await live.rest_ended.wait()
    if live.trouble:
        raise Unreachable(f"{live.image.name} is mounted, but incomplete: {live.trouble}")
    await notify(Progress("fetching", total, total))
