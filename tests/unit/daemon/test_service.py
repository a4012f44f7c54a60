"""lazyfsd's core: what becomes of an order, and the ways in which a lazyfsd ends."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.daemon import service
from lazyfs.daemon.config import Config
from lazyfs.daemon.lifetime import Lifetime
from lazyfs.daemon.plugin import Plugin
from lazyfs.daemon.service import Options, Service
from lazyfs.daemon.state import State
from lazyfs.format.digest import digest_of
from lazyfs.fuse.connection import Connection
from lazyfs.gate.caller import Callers
from lazyfs.kernel.unmount_events import UnmountEvents
from lazyfs.reports.orders import MountOrder, PruneOrder, StatusOrder, UnmountOrder
from lazyfs.reports.results import PruneResult, UnmountResult
from lazyfs.reports.status import ServiceStatus
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.daemon.scripted import ROOT, Kernel, ScriptedImage, ScriptedImages, mount_of, order_of

pytestmark = pytest.mark.usefixtures("jumping")


class ScriptedConnection(Connection):
    """The gate's connection; unmounting it is only noted."""

    done: list[str] = []  # noqa: RUF012  of the class: a NamedTuple's instance has no attributes

    async def unmount(self) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append("unmount the gate")


class Core:
    """A lazyfsd whose kernel and images are scripted."""

    def __init__(self, store: Store, state: State, nursery: trio.Nursery, is_service: bool) -> None:
        self.lifetime = Lifetime(service=is_service)
        self.kernel = Kernel()
        self.images = ScriptedImages()
        options = Options(Config(store=store.directory.path), is_service)
        self.service = Service(
            options, store, state, cast(UnmountEvents, self.kernel.unmount_events), Callers(), nursery, self.lifetime
        )
        for part in (self.service.mounts, self.service.mounting):
            vars(part).update(_overlays=self.kernel, _images=self.images)
        self.service.mounting.has_gate = True
        self.service.recovery.is_complete = True
        self.store, self.state = store, state
        self.connection = ScriptedConnection(store.directory.path, 1, taken_over=True)
        self.connection.done.clear()

    async def mount(self, directory: str = ROOT) -> None:
        self.kernel.table.append(directory)
        row = self.state.add(mount_of(directory))
        self.service.mounts.adopt(row, attached=True)
        self.service.mounts.set_image(row.number, cast(Any, ScriptedImage()))
        await self.service.mounts.watch_for_unmount(row)

    async def stop(self) -> None:
        self.lifetime.stop_requested.set()
        await self.service.stop()

    @property
    def has_left_the_gate(self) -> bool:
        return self.connection.done == ["unmount the gate"]


@asynccontextmanager
async def core(store: Store, *, is_service: bool = False) -> AsyncIterator[Core]:
    with State(store.directory.path) as state:
        async with trio.open_nursery() as nursery:
            made = Core(store, state, nursery, is_service)
            nursery.start_soon(made.service.mounts.handle_unmounts, made.service.tasks)
            try:
                yield made
                await wait_all_tasks_blocked()
            finally:
                made.kernel.unmount_events.close()
            nursery.cancel_scope.cancel()


async def ignore(_: object) -> None:
    """The steps of an order."""


async def test_an_order_counts_as_asked(store: Store) -> None:
    """Until the first one, lazyfsd waits for the order that it was started for."""
    async with core(store) as made:
        assert not made.lifetime.was_asked
        await made.service.execute(StatusOrder(), ignore)
        assert made.lifetime.was_asked


async def test_a_mount_order_sets_the_limit_of_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it names one."""
    limits: list[int] = []
    monkeypatch.setattr(store.eviction, "set_limit", limits.append)
    async with core(store) as made:
        mounted: list[MountOrder] = []

        async def mount(order: MountOrder, notify: object) -> None:
            mounted.append(order)

        monkeypatch.setattr(made.service.mounting, "mount", mount)
        await made.service.execute(order_of(), ignore)
        assert limits == []
        await made.service.execute(order_of(store_size=7), ignore)
        await made.service.execute(order_of(store_size=0), ignore)
        assert limits == [7, 0] and len(mounted) == 3


async def test_a_mount_order_that_comes_at_the_end(store: Store, monkeypatch: pytest.MonkeyPatch, jumping: MockClock) -> None:
    """It is left to the next process, which its client asks when this one has gone."""
    async with core(store) as made:
        made.lifetime.is_over = True
        mounted: list[float] = []

        async def mount(order: MountOrder, notify: object) -> None:
            mounted.append(trio.current_time())

        monkeypatch.setattr(made.service.mounting, "mount", mount)
        began = trio.current_time()
        await made.service.execute(order_of(), ignore)
        assert mounted == [began + service._END_DEADLINE]


async def test_the_last_unmount_names_the_keeper(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may wait for the end of lazyfsd: with the last mount it goes as well. Not where something else uses it."""
    async with core(store) as made:

        async def unmount(order: UnmountOrder) -> UnmountResult:
            return UnmountResult(order.directory, 0)

        monkeypatch.setattr(made.service.mounting, "unmount", unmount)
        with made.lifetime.uses.in_use():
            assert await made.service.execute(UnmountOrder("/a"), ignore) == UnmountResult("/a", os.getppid())
            with made.lifetime.uses.in_use():
                assert await made.service.execute(UnmountOrder("/a"), ignore) == UnmountResult("/a", 0)
            await made.mount()
            assert await made.service.execute(UnmountOrder("/a"), ignore) == UnmountResult("/a", 0)


async def test_status_and_prune(store: Store) -> None:
    """The status has all mounts, or the one that was asked for, and what has failed."""
    async with core(store) as made:
        await made.mount("/a")
        await made.mount("/b")
        made.service.tasks.failures._counts["fetch"] = 2
        for mount in made.service.mounts.live.values():  # nothing is scripted of a live image's status
            made.service.mounts.live[mount.row.number] = mount._replace(live=None)
        everything = await made.service.execute(StatusOrder(), ignore)
        one = await made.service.execute(StatusOrder("/b"), ignore)
        assert isinstance(everything, ServiceStatus) and isinstance(one, ServiceStatus)
        assert [mount.directory for mount in everything.mounts] == ["/a", "/b"]
        assert [mount.directory for mount in one.mounts] == ["/b"]
        assert everything.failures == {"fetch": 2}
        assert isinstance(await made.service.execute(PruneOrder(everything=False, older_than=0), ignore), PruneResult)


@pytest.mark.parametrize("has_signal", [True, False])
async def test_what_has_arrived_is_made_durable(store: Store, has_signal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are ended in any case. On a signal the sync begins at once, because not much time is left."""
    async with core(store) as made:
        done: list[str] = []

        async def sync() -> None:
            done.append("sync")

        async def end_records() -> None:
            done.append("records")

        monkeypatch.setattr(made.service.upkeep, "stop", sync)
        monkeypatch.setattr(made.service.recordings, "end_all", end_records)
        if has_signal:
            made.lifetime.stop_requested.set()
        await made.service.stop()
        await wait_all_tasks_blocked()
        assert sorted(done) == ["records", "sync"][: 1 + has_signal]


async def test_a_signal_takes_the_mounts(store: Store) -> None:
    """A plain lazyfsd unmounts, and its clients get an error that their orders are cancelled."""
    async with core(store) as made:
        await made.mount("/a")
        await made.mount("/b")
        with made.service._clients:
            assert made.service._stop_message() == ""
            await made.stop()
            assert "stopped" in made.service._stop_message()
        assert made.service._clients.cancel_called
        assert made.kernel.table == [] and not made.state.rows()
        assert made.kernel.done[-1] == "drop layers"


async def test_a_busy_mount_is_detached_at_a_signal(store: Store, expect_log: LogWatch) -> None:
    """One that cannot be unmounted holds up no other one."""
    expect_log("stopping: /a is busy")
    expect_log("stopping: /b is busy")
    async with core(store) as made:
        await made.mount("/a")
        await made.mount("/b")
        made.kernel.busy = True
        await made.stop()
        assert made.kernel.table == []
        assert {"detach /a", "detach /b"} < set(made.kernel.done)


async def test_a_service_leaves_its_mounts(store: Store) -> None:
    """And its orders: their clients ask the next process, so none gets an error."""
    async with core(store, is_service=True) as made:
        await made.mount()
        await made.stop()
        assert made.service._clients.cancel_called and made.service._stop_message() == ""
        assert made.kernel.table == [ROOT] and len(made.state.rows()) == 1
        await made.service.leave(made.connection)
        assert not made.has_left_the_gate and made.service.mounting.has_gate


async def test_an_end_without_a_signal(store: Store) -> None:
    """Nothing has used it: clients that come now are still answered, and what has arrived is synced by the caller."""
    async with core(store) as made:
        await made.service.stop()
        assert not made.service._clients.cancel_called and made.kernel.done == ["drop layers"]


async def test_a_step_of_the_end_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch) -> None:
    """The next step is taken all the same."""
    expect_log("last (unmounts|records) has failed: RuntimeError")
    async with core(store) as made:

        async def fail() -> None:
            raise RuntimeError("surprise")

        monkeypatch.setattr(made.service, "_unmount_all", fail)
        monkeypatch.setattr(made.service.recordings, "end_all", fail)
        await made.stop()
        assert made.kernel.done == ["drop layers"]


async def test_the_gate_is_served_until_it_is_unused(store: Store) -> None:
    """However long that takes, where no signal came. No mount is made on it any more."""
    async with core(store) as made, trio.open_nursery() as nursery:
        ended = trio.Event()

        async def leave() -> None:
            await made.service.leave(made.connection)
            ended.set()

        nursery.start_soon(leave)
        await trio.sleep(3600)
        assert made.has_left_the_gate and not made.service.mounting.has_gate and not ended.is_set()
        made.lifetime.gate_ended.set()
        await ended.wait()


async def test_a_signal_does_not_wait_for_ever(store: Store, expect_log: LogWatch) -> None:
    """A process that is still in a mount gets errors for files that have not arrived."""
    expect_log("mounts are still in use: files that they are missing can no longer be fetched")
    async with core(store) as made:
        made.lifetime.stop_requested.set()
        began = trio.current_time()
        await made.service.leave(made.connection)
        assert trio.current_time() == began + service._END_DEADLINE


@pytest.mark.parametrize(
    ("roots", "stays"), [([1], True), ([], False), (None, True), (OSError(24, "no descriptors"), True)], ids=repr
)
async def test_a_service_leaves_the_gate_to_roots(
    store: Store, roots: list[int] | OSError | None, stays: bool, expect_log: LogWatch
) -> None:
    """A container's root depends on the gate as a mount does. If nobody knows whether there are any, there are."""
    async with core(store, is_service=True) as made:

        async def count() -> list[int]:
            if isinstance(roots, OSError):
                raise roots
            return roots or []

        made.service._has_containerds = True
        if roots is not None:
            made.service.plugin = cast(Plugin, SimpleNamespace(roots=count))
        if roots is None or isinstance(roots, OSError):
            expect_log("count of roots has failed")
        made.lifetime.gate_ended.set()
        await made.service.leave(made.connection)
        assert made.has_left_the_gate != stays


async def test_a_mount_that_was_not_found_keeps_the_gate_of_a_service(store: Store) -> None:
    """Its recovery failed, and its reads still go through the gate."""
    async with core(store, is_service=True) as made:
        made.service.recovery.is_complete = False
        made.lifetime.gate_ended.set()
        await made.service.leave(made.connection)
        assert not made.has_left_the_gate


async def test_a_plain_lazyfsd_unmounts_the_gate_below_a_busy_mount(store: Store, expect_log: LogWatch) -> None:
    """No process follows that could serve it."""
    expect_log("mounts are still in use")
    async with core(store) as made:
        await made.mount()
        made.lifetime.stop_requested.set()
        await made.service.leave(made.connection)
        assert made.has_left_the_gate


async def test_a_service_without_users_unmounts_the_gate(store: Store) -> None:
    """It ends with its last user, as any lazyfsd."""
    async with core(store, is_service=True) as made:
        made.lifetime.gate_ended.set()
        await made.service.leave(made.connection)
        assert made.has_left_the_gate


async def test_what_is_in_use_stays_in_the_store(store: Store) -> None:
    """The documents of mounted images and of containerd's layers."""
    async with core(store) as made:
        toc = digest_of(b"of a snapshot")
        image = ScriptedImage()
        made.service.images.live["image"] = cast(Any, image)
        documents = {image.image.digest, image.image.manifest.config.digest, image.layers[0].toc_digest}
        assert made.service.in_use().documents == documents
        made.service.plugin = cast(Plugin, SimpleNamespace(documents=lambda: {toc}))
        assert made.service.in_use().documents == documents | {toc}
        made.service.images.live.clear()
        made.service.plugin = None


async def test_the_status_line(store: Store) -> None:
    """What systemd shows of a service: mounts, roots, and which containerd is not served."""
    async with core(store, is_service=True) as made:
        assert await made.service.summary() == "0 mounts"

        async def roots() -> list[int]:
            return [1, 2]

        live = SimpleNamespace(live=[1, 2, 3])
        scripted = SimpleNamespace(roots=roots, layers=live, snapshotters={"one": None}, unserved={"other": "it is damaged"})
        made.service.plugin = cast(Plugin, scripted)
        line = "0 mounts; 2 roots for one; 3 lazy layers in use; other is not served: it is damaged"
        assert await made.service.summary() == line
        scripted.snapshotters.clear()
        assert "2 roots for nobody" in await made.service.summary()
        made.service.plugin = None
