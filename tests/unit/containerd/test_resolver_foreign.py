"""Foreign layers in containerd's plugin."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from lazyfs.store.store import Store
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.containerd.test_resolver import Grown, resolver


async def test_urls_of_foreign_layers_are_left_to_containerd(
    store: Store, tmp_path: Path, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lazy snapshot does not remember them: what only they serve could not be fetched after a restart."""
    monkeypatch.setattr("lazyfs.containerd.resolver.GrowingStack", Grown())
    image = ScriptedImage(tmp_path / "foreign", {"a": b"a"}, urls=["http://elsewhere.test/blob"])
    registry = image.registry()
    async with resolver(store, registry) as setting:
        await setting.resolve_all([image.claim(0)])
    assert registry.ranges and not registry.urls
