"""The containerds that lazyfsd serves: one that cannot be served hears why, and everything else goes on."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, cast

import trio

from lazyfs.containerd.handshakes import SETTINGS, Handshakes
from lazyfs.daemon import plugin
from lazyfs.daemon.config import Config
from lazyfs.daemon.plugin import Plugin, new_plugin
from lazyfs.gate.catalog import Catalog
from lazyfs.live.layers import Layers
from lazyfs.live.source import Sources
from lazyfs.native.layers import LayerMounts
from lazyfs.tasks import Supervisor
from tests.unit.surprises.borders import listener_at
from tests.unit.surprises.scene import PATIENCE, Scene


class _Plugged(NamedTuple):
    """A plugin, and what it listens at."""

    plugin: Plugin
    listener: socket.socket
    stack: AsyncExitStack

    async def serve(self) -> None:
        await self.plugin.serve({"one": self.listener}, Handshakes({}), self.stack)


@asynccontextmanager
async def _plugin(scene: Scene) -> AsyncIterator[_Plugged]:
    scene.patch.setattr(plugin, "_RUN", scene.folder)
    scene.patch.setattr(plugin, "MODULES", ())
    listener = listener_at(scene, scene.folder / "outer")
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        inner: Supervisor = tasks.within(nursery)
        store = scene.store()
        catalog = Catalog()
        sources, layers = Sources(store, catalog, inner), Layers(store, catalog, inner)
        served = new_plugin(Config(store=scene.folder), store, sources, layers, LayerMounts(scene.folder), inner)
        async with AsyncExitStack() as stack:
            yield _Plugged(served, listener, stack)
            nursery.cancel_scope.cancel()


async def _is_heard(scene: Scene) -> None:
    with trio.fail_after(PATIENCE):
        async with await trio.open_unix_socket(os.fspath(scene.folder / "outer")) as caller:
            assert await caller.receive_some(len(SETTINGS)) == SETTINGS


async def plugged(scene: Scene) -> None:
    """A caller is answered, at once or after a pause."""
    async with _plugin(scene) as served:
        served.plugin.unserved["one"] = "it is damaged"
        await served.serve()
        await _is_heard(scene)


async def unplugged(scene: Scene) -> None:
    """A containerd that cannot be answered: the status says so, and nothing else has ended."""
    async with _plugin(scene) as served:
        served.plugin.unserved["one"] = "it is damaged"
        await served.serve()
        assert served.plugin.unserved == {"one": "it is damaged"}


class _Snapshotter:
    """What an earlier process has left of a containerd: one root."""

    class roots:  # noqa: N801
        @staticmethod
        def mounted() -> list[int]:
            return [1]

        @staticmethod
        def mark_dead() -> None:
            pass

        @staticmethod
        def unmount(number: int) -> None:
            pass

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()


async def refused(scene: Scene) -> None:
    """A containerd that cannot be served hears why; its roots still count, so nobody takes the gate away from them. Those whose gate is
    dead are unmounted."""
    unmounted: list[int] = []
    scene.patch.setattr(_Snapshotter.roots, "unmount", unmounted.append)
    async with _plugin(scene) as served:
        served.plugin.snapshotters["one"] = cast("Any", _Snapshotter())
        await served.plugin.start(same_gate=False)
        assert unmounted == [1]
        await served.serve()
        scene.expect("containerd one is not served until lazyfsd is restarted: .*surprise")
        assert "surprise" in served.plugin.unserved["one"] and not served.plugin.snapshotters
        assert await served.plugin.roots() == [1]


async def heard(scene: Scene) -> None:
    """As `refused`, and the caller is answered."""
    async with _plugin(scene) as served:
        served.plugin.snapshotters["one"] = cast("Any", _Snapshotter())
        await served.plugin.start(same_gate=True)
        await served.serve()
        scene.expect("containerd one is not served until lazyfsd is restarted: .*surprise")
        assert await served.plugin.roots() == [1]
        await _is_heard(scene)


async def dead(scene: Scene) -> None:
    """The roots of a containerd that is not served, on a gate that was lost: they stay."""
    async with _plugin(scene) as served:
        served.plugin._unserved_roots.append(cast("Any", _Snapshotter.roots))
        await served.plugin.start(same_gate=False)
        assert await served.plugin.roots() == [1]
