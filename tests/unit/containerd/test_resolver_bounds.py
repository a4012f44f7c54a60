"""What the layers of one image may describe together, though containerd asks for one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from lazyfs.errors import InvalidInput
from lazyfs.format import bounds
from lazyfs.store.store import Store
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.containerd.test_resolver import Grown, resolver


async def test_layers_that_are_too_much_together_are_refused(
    store: Store, tmp_path: Path, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three fit, whichever come first; asked for again, a layer is counted once."""
    monkeypatch.setattr("lazyfs.containerd.resolver.GrowingStack", Grown())
    monkeypatch.setattr("lazyfs.containerd.resolver._AT_ONCE", 1)  # those parsed at the same time do not see each other
    monkeypatch.setattr(bounds, "DESCRIPTION", 5000)
    monkeypatch.setattr(bounds, "DESCRIPTION_RATIO", 0)
    image = ScriptedImage(tmp_path / "three", *({f"{layer}{number}": b"x" for number in range(4)} for layer in "abc"))
    async with resolver(store, image.registry()) as setting:
        for _ in range(3):
            refused = 0
            for number in range(3):
                try:
                    assert (await setting.resolver.resolve(image.claim(number))).lazy == image.lazy[number]
                except InvalidInput:
                    refused += 1
            assert refused == 1
