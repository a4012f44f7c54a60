"""A layer that an earlier version accepted, and that breaks a bound of this one: mounted it stays, and is not mounted again."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from lazyfs.daemon.mounting import image_of
from lazyfs.daemon.state import MountRecord
from lazyfs.errors import InvalidToc
from lazyfs.format.platform import this_platform
from lazyfs.gate.catalog import Catalog
from lazyfs.reports.orders import MountOrder
from lazyfs.store.store import Store
from tests.bad.oci import Oci, file
from tests.unit.live.test_images import make_images


async def nothing(_: object) -> None:
    """Nobody listens."""


async def test_a_mounted_layer_is_served_after_an_upgrade(tmp_path: Path) -> None:
    """Recovery goes by the state's row; an order for the same image is refused, and the mount does not notice."""
    oci = Oci(tmp_path / "src")
    oci.image(oci.lazy([file(), file("slice", innerOffset=1)]))
    reference, platform = f"oci:{oci.path}:v1", str(this_platform())
    order = MountOrder("t", reference, "/mnt", platform, background="off")
    row = MountRecord("/mnt", "t", "", reference, platform, False, "off", "", False, "")
    with Store.open(tmp_path / "store") as store:
        catalog = Catalog()
        catalog.begin()
        async with trio.open_nursery() as nursery:
            images = make_images(store, catalog, nursery)
            with pytest.raises(InvalidToc, match="two chunks of the member at offset 0 overlap"):
                await images.acquire(image_of(order), "", nothing, lazy_only=True)
            live = await images.acquire(image_of(row), "", nothing, lazy_only=False)
            await live.known()
            with pytest.raises(InvalidToc, match="overlap"):
                await make_images(store, catalog, nursery).acquire(image_of(order), "", nothing, lazy_only=True)
            assert len(live.blobs[0].pieces) == 2
            nursery.cancel_scope.cancel()
