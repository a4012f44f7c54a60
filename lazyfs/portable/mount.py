"""The portable mount: one process, one pyfuse3 session, the merged tree of one image.

All resources are in one AsyncExitStack, in the order in which they depend on each other: store, source, fetcher, FUSE session. The process
exits when the kernel says that the mount is gone; SIGTERM and SIGINT only unmount.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, Literal, NamedTuple

import pyfuse3
import trio

from lazyfs.eager.image import load_image_layers
from lazyfs.errors import LocalError, MountFailed
from lazyfs.fetch.background import Background, Wanted, measure_missing, tally_of
from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.format.platform import Platform
from lazyfs.fuse.loop import serve as serve_kernel
from lazyfs.fuse.operations import Operations
from lazyfs.image.image import Image, resolve_image
from lazyfs.image.layer import Layer
from lazyfs.kernel.heap import share_arenas
from lazyfs.mount.status import encode_status
from lazyfs.mount.table import find_mount
from lazyfs.mount.unmount import unmount
from lazyfs.mount.upkeep import Upkeep
from lazyfs.portable.daemon import Reporter
from lazyfs.reports.results import PortableResult
from lazyfs.reports.status import LayerStatus, MountStatus
from lazyfs.reports.steps import Note, Progress, Step
from lazyfs.reports.wire import Refusal
from lazyfs.source.open import AccessOptions, open_source
from lazyfs.source.reference import Reference
from lazyfs.store.in_use import InUse, declare
from lazyfs.store.store import Store
from lazyfs.store.tally import Tally
from lazyfs.tasks import Failures, Supervisor
from lazyfs.vfs.filesystem import FileSystem
from lazyfs.vfs.tree import Tree

_log = logging.getLogger(__name__)

BackgroundMode = Literal["on", "off", "wait"]
_TASKS: Final = 160
"""Concurrent requests in pyfuse3: more than the kernel's max_background, which is set below."""
_MAX_BACKGROUND: Final = 128
_READ_AHEAD_KB: Final = 1024
_LAYERS_REPORTED: Final = 200
"""In a status, which has to fit into an extended attribute: 64 KiB."""


class MountRequest(NamedTuple):
    """What `lazyfs mount` was called with."""

    reference: Reference
    directory: Path
    store: Path
    platform: Platform
    access: AccessOptions
    background: BackgroundMode
    lazy_only: bool = False
    """Refuse layers that are not lazy, instead of fetching them whole."""
    store_size: int = -1
    """The limit of the store in bytes; 0 means no limit, -1 leaves it unchanged."""


def serve(request: MountRequest, reporter: Reporter) -> None:
    """Mount and serve until unmounted. Raises LazyfsError if the image cannot be mounted."""
    share_arenas()
    trio.run(_serve, request, reporter)


async def _serve(request: MountRequest, reporter: Reporter) -> None:
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        store = stack.enter_context(await trio.to_thread.run_sync(Store.open, request.store))
        if request.store_size >= 0:
            await trio.to_thread.run_sync(store.eviction.set_limit, request.store_size)
        source = open_source(request.reference, request.access)
        stack.push_async_callback(source.aclose)
        image = await resolve_image(source, request.reference.selector, request.platform, store)
        send = partial(_send_progress, reporter)
        layers = await load_image_layers(source, store, image, lazy_only=request.lazy_only, progress=send)
        tree = await trio.to_thread.run_sync(Tree, [layer.entries for layer in layers])
        failures = Failures()
        fetcher = await stack.enter_async_context(open_fetcher(store, source, failures=failures, image=image.name))
        mount = PortableMount(request, image, layers, store, fetcher, FileSystem(tree, layers, fetcher), failures)
        _log.info("%s resolved in %.3f s", image.name, time.monotonic() - started)
        # Before the mount exists: a signal in between would kill the process and leave a dead mount.
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        stack.enter_context(_FuseMount(Operations(mount.filesystem, mount.status), request.directory, image.name))
        async with trio.open_nursery() as nursery:
            tasks = Supervisor(nursery, failures)
            tasks.keep_running("unmount on a signal", _unmount_on_signal, signals, request.directory)
            tasks.start_soon("pull", mount.run_pull, reporter, tasks)
            tasks.keep_running("store upkeep", mount.keep_store, tasks)
            await serve_kernel(_TASKS)
            nursery.cancel_scope.cancel()
            await tasks.attempt("last sync", Upkeep(store, InUse).stop)


class PortableMount:
    """A mount's tasks besides serving the kernel: its pull, the upkeep of its store, its status."""

    def __init__(
        self,
        request: MountRequest,
        image: Image,
        layers: tuple[Layer, ...],
        store: Store,
        fetcher: Fetcher,
        filesystem: FileSystem,
        failures: Failures,
    ) -> None:
        self.filesystem = filesystem
        self._failures = failures
        self._request = request
        self._image = image
        self._layers = layers
        self._store = store
        self._fetcher = fetcher
        self._background: Background | None = None
        self._tally: Tally | None = None
        self._tallying = trio.Lock()

    async def run_pull(self, reporter: Reporter, tasks: Supervisor) -> None:
        """Report that the mount is ready, then fetch the rest. A failure is reported to the parent; the mount goes on."""
        try:
            surprise = await tasks.attempt("report of a pull", self._run_pull, reporter, tasks, subject=self._image.name)
            if surprise is not None:
                await _send(reporter, Refusal(f"{self._image.name} is mounted, but incomplete: {surprise!r}", 1))
        finally:
            reporter.detach()

    async def _run_pull(self, reporter: Reporter, tasks: Supervisor) -> None:
        await trio.to_thread.run_sync(_tune, self._request.directory, abandon_on_cancel=True)
        reporter.send(PortableResult(self._image.name))
        if self._request.background != "wait":
            reporter.detach()
        if self._request.background == "off":
            return
        wanted = [Wanted(await self.filesystem.blob(index), layer.prefetch_end) for index, layer in enumerate(self._layers)]
        self._background = Background(self._store, self._fetcher, wanted, subject=self._image.name, failures=tasks.failures)
        async with trio.open_nursery() as nursery:
            if self._request.background == "wait":
                tasks.within(nursery).start_soon("progress of a pull", self._report_progress, reporter, self._background)
            await self._background.run()
            nursery.cancel_scope.cancel()
        if not self._background.finished.is_set():
            await _send(reporter, Refusal(f"{self._image.name} is mounted, but incomplete: {self._background.trouble}", 4))
        await _send(reporter, PortableResult(self._image.name))

    async def keep_store(self, tasks: Supervisor) -> None:
        """Run the upkeep of the store until cancelled. This image's files are evicted last."""
        objects: set[str] = set()
        for index in range(len(self._layers)):
            objects.update(piece.content.name for piece in (await self.filesystem.blob(index)).pieces)
        manifest = self._image.manifest
        documents = {self._image.digest, manifest.config.digest, *(layer.toc_digest for layer in self._layers)}
        try:
            await trio.to_thread.run_sync(declare, self._store.directory, objects, documents)
        except LocalError as error:
            _log.warning("cannot mark the files of this mount as in use: they may be evicted first: %s", error)
        await Upkeep(self._store, lambda: InUse(objects, documents)).run(tasks)

    async def _report_progress(self, reporter: Reporter, background: Background) -> None:
        blobs = [await self.filesystem.blob(index) for index in range(len(self._layers))]
        total = (await trio.to_thread.run_sync(measure_missing, self._store, blobs)).size
        before = self._fetcher.statistics().unpacked
        while True:
            # Counted, not measured: chunks copied within the store are missing until the last report.
            done = min(total, self._fetcher.statistics().unpacked - before)
            await _send(reporter, Progress("fetching", done, total, background.trouble))
            await trio.sleep(0.25)

    async def status(self) -> bytes:
        """The status for `lazyfs status`, as JSON."""
        blobs = [await self.filesystem.blob(index) for index in range(len(self._layers))]
        async with self._tallying:
            if self._tally is None:
                self._tally = await trio.to_thread.run_sync(tally_of, self._store, blobs)
        missing = await trio.to_thread.run_sync(self._tally.measure)
        fetched = self._fetcher.statistics()
        return encode_status(
            MountStatus(
                directory=str(self._request.directory),
                image=self._image.name,
                pid=os.getpid(),
                store=str(self._request.store),
                background=self._request.background,
                complete=missing.chunks == 0,
                missing_chunks=missing.chunks,
                missing_bytes=missing.size,
                total_bytes=self.filesystem.tree.size,
                layers=len(self._layers),
                layer_bytes=sum(layer.descriptor.size for layer in self._layers),
                requests=fetched.requests,
                received_bytes=fetched.received,
                chunks=fetched.chunks,
                unkept=fetched.unkept,
                damaged=self._store.all_damaged,
                errors=fetched.errors,
                failures=self._failures.counts(),
                trouble=self._background.trouble if self._background else "",
                layer_states=tuple(
                    LayerStatus(layer.digest, layer.descriptor.size, layer.reason) for layer in self._layers[:_LAYERS_REPORTED]
                ),
            )
        )


async def _send(reporter: Reporter, report: Step | PortableResult | Refusal) -> None:
    """In a thread: the pipe to a parent that is stopped (Ctrl-Z) fills up, and must not block the mount."""
    await trio.to_thread.run_sync(reporter.send, report, abandon_on_cancel=True)


async def _send_progress(reporter: Reporter, step: Note | Progress) -> None:
    if isinstance(step, Note):
        _log.info("%s", step.note)
    await _send(reporter, step)


class _FuseMount:
    """The FUSE mount: pyfuse3 has one session a process."""

    def __init__(self, operations: Operations, directory: Path, image: str) -> None:
        self._operations = operations
        self._directory = directory
        self._image = image

    def __enter__(self) -> None:
        escaped = self._image.replace("\\", "\\\\").replace(",", "\\,")
        options = {f"fsname={escaped}", "subtype=lazyfs", "ro", "default_permissions"}
        if os.geteuid() == 0:
            options |= {"allow_other", "suid", "dev"}
        with TemporaryFile() as said:
            # libfuse and fusermount3 write the reason to stderr only.
            stderr = os.dup(2)
            os.dup2(said.fileno(), 2)
            try:
                pyfuse3.init(self._operations, str(self._directory), options)
            except RuntimeError as error:
                said.seek(0)
                reason = said.read().decode("utf-8", "replace").strip() or str(error)
                raise MountFailed(
                    f"cannot mount at {self._directory}: {reason}",
                    hint="It must be a directory of yours; /dev/fuse must be there, and for an ordinary user fusermount3 (package fuse3)",
                ) from error
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)

    def __exit__(self, *_: object) -> None:
        pyfuse3.close(unmount=find_mount(self._directory) is not None)


async def _unmount_on_signal(signals: AsyncIterator[int], directory: Path) -> None:
    """Unmount on SIGTERM and SIGINT; a busy mount is detached, so that the process can exit."""
    async for _ in signals:
        for lazy in (False, True):
            try:
                await trio.to_thread.run_sync(partial(unmount, directory, lazy=lazy))
            except MountFailed as error:
                _log.warning("stopping: %s", error)
            else:
                break
        if find_mount(directory) is None:
            pyfuse3.terminate()
            return


def _tune(directory: Path) -> None:
    """Set a larger read-ahead and more concurrent requests, where permitted. Blocking, until the mount answers.

    Not more than 1024 KiB: a page fault in a mapped file reads the whole window around the page. The mount must answer first, because
    FUSE_INIT resets both values: in one mount of eight it came last and halved the speed.
    """
    try:
        os.statvfs(directory)
    except OSError:
        return  # unmounted already
    mounted = find_mount(directory)
    if mounted is None or os.geteuid() != 0:
        return
    _set(Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb"), _READ_AHEAD_KB)
    connection = Path(f"/sys/fs/fuse/connections/{mounted.device.partition(':')[2]}")
    _set(connection / "max_background", _MAX_BACKGROUND)
    _set(connection / "congestion_threshold", _MAX_BACKGROUND * 3 // 4)


def _set(knob: Path, value: int) -> None:
    try:
        knob.write_text(str(value))
    except OSError as error:
        _log.info("cannot change %s: %s", knob, error)
