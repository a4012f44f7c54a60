"""Images and pulls with a common layer, started together, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from lazyfs.fetch.background import measure_missing
from lazyfs.live.lifecycle import State
from lazyfs.store.store import Store
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.live.living import Living, living

Together = Callable[[Living, str], Awaitable[None]]


async def mounted(setting: Living, name: str) -> None:
    """Wait until all of an image of both layers was fetched."""
    await setting.mount(name, 0, 1, background=True).rest_ended.wait()


async def pulled(setting: Living, _: str) -> None:
    """Wait until all of both layers was fetched for containerd."""
    for live in [setting.use(0), setting.use(1)]:
        pull = setting.pulls.begin(live)
        live.uses.change(-1)
        await pull.lifecycle.wait_for(State.ENDED)


@pytest.mark.parametrize("other", [mounted, pulled], ids=lambda other: other.__name__)
async def test_a_shared_layer_is_fetched_once(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch, other: Together
) -> None:
    """In lockstep, from two sources: 1.0 times its bytes."""
    monkeypatch.setattr("lazyfs.fetch.background.RUN_BYTES", 5_000)
    async with living(store, image) as setting:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mounted, setting, "first")
            nursery.start_soon(other, setting, "second")
        layers = [setting.blob(0), setting.blob(1)]
        assert measure_missing(store, layers).chunks == 0
        assert setting.sent == sum(layer.data_end for layer in layers)
        assert len(setting.opened) == 2 and all(source.sent for source in setting.opened)
