"""What lazyfsd does with several orders at once, as a process of its own: `python -m tests.bad.daemon_of_many STORE LAYOUT…`.

The images are brought to life as an order's image is, all at the same time and without a mount, which needs root. Prints a line of
JSON for each, in order: what it was refused with, or an empty string.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import trio

from lazyfs.daemon.mounting import image_of
from lazyfs.errors import InvalidInput
from lazyfs.format.platform import this_platform
from lazyfs.gate.catalog import Catalog
from lazyfs.kernel.heap import share_arenas
from lazyfs.live.image import Images
from lazyfs.live.layers import Layers
from lazyfs.live.source import Sources
from lazyfs.reports.orders import MountOrder
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor


async def nothing(_: object) -> None:
    """Nobody listens."""


async def main(store_path: Path, layouts: list[str]) -> list[str]:
    refusals = [""] * len(layouts)
    with Store.open(store_path) as store:
        catalog = Catalog()
        catalog.begin()
        async with trio.open_nursery() as living:
            tasks = Supervisor(living)
            images = Images(store, catalog, Sources(store, catalog, tasks), Layers(store, catalog, tasks), tasks)

            async def order(number: int) -> None:
                mount = MountOrder(str(number), f"oci:{layouts[number]}:v1", "/mnt", str(this_platform()), background="off")
                try:
                    live = await images.acquire(image_of(mount), "", nothing, lazy_only=False)
                    await live.known()
                except InvalidInput as error:
                    refusals[number] = str(error)

            async with trio.open_nursery() as orders:
                for number in range(len(layouts)):
                    orders.start_soon(order, number)
            living.cancel_scope.cancel()
    return refusals


if __name__ == "__main__":
    logging.basicConfig()
    share_arenas()  # as lazyfsd does
    for refusal in trio.run(main, Path(sys.argv[1]), sys.argv[2:]):
        print(json.dumps(refusal))
