"""What lives in lazyfsd: sources, layers, their pulls, images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from lazyfs.errors import LazyfsError
from lazyfs.live.lifecycle import State
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.live.living import Living
from tests.unit.surprises.scene import PATIENCE, Scene, until


@asynccontextmanager
async def _living(scene: Scene) -> AsyncIterator[Living]:
    image = ScriptedImage(scene.folder / "image", {"a": b"first" * 1000}, {"b": b"second" * 1000})
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        found = Living(scene.store(), image, nursery)
        scene.failures = found.failures
        assert tasks.failures is not None
        yield found
        nursery.cancel_scope.cancel()


def _quick(found: Living) -> None:
    for source in found.opened:
        source.rate = None


async def pulled(scene: Scene) -> None:
    """Who waits for the end of the pull is woken, and so is who waits for the index; the next pull brings all of the layer."""
    async with _living(scene) as found:
        for _ in range(2):
            with trio.fail_after(PATIENCE):
                live = found.use(0)
                _quick(found)
                pull = found.pulls.begin(live)
                await pull.lifecycle.wait_for(State.ENDED)
                try:
                    await live.known()
                except LazyfsError:
                    assert scene.failures.counts()
                live.uses.change(-1)
        assert found.holds()


async def mounted(scene: Scene) -> None:
    """Its files can be had all the same, and the next mount has all of it."""
    async with _living(scene) as found:
        for _ in range(2):
            with trio.fail_after(PATIENCE):
                live = found.mount("first", 0, 1, background=True)
                _quick(found)
                await it_ends(scene, live.rest_ended)
                live.leave()
        with trio.fail_after(PATIENCE):
            live = found.mount("second", 0, background=True)
            _quick(found)
            await live.rest_ended.wait()
            assert found.holds()


async def it_ends(scene: Scene, event: trio.Event) -> None:
    """The event comes, or a failure was counted."""
    await until(lambda: event.is_set() or scene.failures.counts())
