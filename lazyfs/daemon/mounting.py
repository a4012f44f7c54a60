"""Orders for mounts, carried out: an image brought to life, an overlay made of it, and taken away again.

Whoever orders a mount may go away before it is told of it, and the process that carries the order out may die: a mount that
nobody knows of is taken back, and an order that is sent again (its ticket tells) is answered and not carried out twice.
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
"""Seconds that an unmount waits to hear that the last user has gone."""


class MountHandler:
    """Carries orders out, of which no two have to do with one directory."""

    def __init__(self, store: Store, images: Images, mounts: Mounts, overlays: Overlays) -> None:
        self._store = store
        self._images = images
        self._mounts = mounts
        self._overlays = overlays
        self._busy: set[str] = set()
        self._probe_result: ProbeResult | None = None
        self.has_gate = True

    async def mount(self, order: MountOrder, notify: Notify) -> MountResult:
        """MountRecord as ordered. Raises LazyfsError; nothing is left then, but what has arrived in the store, or with `background` a mount
        that is incomplete. Nor is there when it is cancelled, but a mount that somebody uses already.
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
        """The order was carried out by a process that died before it said so; the image may not have come to life again."""
        live = await self._images.acquire(image_of(row.mount), order.creds, notify, lazy_only=False)
        try:
            return await self._report(row, live, order, notify)
        finally:
            live.leave()

    async def _undo(self, row: Row) -> None:
        """Whoever ordered this mount has gone: nobody knows of it."""
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
        """Unmount as ordered, and wait for the end of it. Raises MountFailed: it is none of ours, or busy."""
        directory = Path(order.directory)
        async with self._exclusive(order.directory):
            found = [mount for mount in self._mounts.live.values() if mount.row.mount.directory == order.directory]
            if not found:
                raise MountFailed(f"{directory} is not a mount of this lazyfsd", hint="`lazyfs status` lists the mounts")
            mount = found[-1]
            if order.lazy:  # said first: a crash in between must not lose a mount that is nowhere to be seen
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
        """What is told of a mount that is there, and where the order says so, when all of it has arrived."""
        if order.background == "wait":
            await _wait_until_complete(live, self._store, notify)
        config = await trio.to_thread.run_sync(self._store.document, live.image.manifest.config.digest)
        text = (config or b"").decode("utf-8", "replace")
        return MountResult(row.mount.directory, row.mount.image, "native", text, os.getpid())

    @asynccontextmanager
    async def _exclusive(self, *directories: str) -> AsyncIterator[None]:
        """Directories that no other order has to do with meanwhile; an empty name is none."""
        names = set(directories) - {""}
        for name in names & self._busy:
            raise MountFailed(f"another order for {name} is being carried out", hint="Wait for it")
        self._busy |= names
        try:
            yield
        finally:
            self._busy -= names


def image_of(mount: MountOrder | MountRecord) -> ImageRequest:
    """The image of an order, or of a row of the state: that one is mounted, so it was accepted."""
    return ImageRequest(
        mount.reference, mount.platform, mount.plain_http, mount.background != "off", isinstance(mount, MountRecord)
    )


def _record_of(order: MountOrder, live: LiveImage) -> MountRecord:
    """What is noted of an order: with the digest that a tag means now, without passwords."""
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
    """Until all of the image is here. Raises SourceError: what is left cannot be had."""
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
