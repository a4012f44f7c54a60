"""What lazyfsd and a portable mount say of an image: right while chunks come and go, and at no cost that grows with the image."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from lazyfs.daemon.mounts import LiveMount
from lazyfs.daemon.state import MountRecord, Row
from lazyfs.daemon.status import describe_mount
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.format.entry import Chunk, Entry
from lazyfs.gate.catalog import Catalog
from lazyfs.gate.gate import Gate
from lazyfs.image.layer import Layer
from lazyfs.portable.mount import MountRequest, PortableMount
from lazyfs.store.content import content_of
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from lazyfs.tasks import Failures
from lazyfs.vfs.filesystem import FileSystem
from lazyfs.vfs.tree import Tree
from tests.unit.fetch.scripted import ScriptedSource
from tests.unit.live.test_images import BLOB, DIGEST, IMAGE, make_images

CHUNKS = [Chunk(0, 10, bytes([number]) * 32, number, 0, number + 1) for number in range(5)]
LAYERS = (Layer(BLOB, DIGEST, 9, tuple(Entry(b"%d" % chunk.member, "reg", size=10, chunks=(chunk,)) for chunk in CHUNKS)),)

Told = tuple[bool, int, int, int]
"""complete, missing_chunks, missing_bytes, total_bytes"""
Describe = Callable[[], Awaitable[Told]]


@asynccontextmanager
async def by_lazyfsd(store: Store) -> AsyncIterator[Describe]:
    async with trio.open_nursery() as nursery:
        catalog = Catalog()
        live = make_images(store, catalog, nursery).add(IMAGE, LAYERS, ScriptedSource(), background=False)
        await live.known()
        row = Row(1, "mounted", "", MountRecord("/mnt", "", IMAGE.name, "", "", False, "off", "", False, ""))
        mount = LiveMount(row, IMAGE.name, False, trio.Event(), live)
        gate = Gate(store, catalog, lambda *_: None, lambda _: False, Failures())

        async def describe() -> Told:
            status = await describe_mount(mount, live, store, gate, Failures())
            return status.complete, status.missing_chunks, status.missing_bytes, status.total_bytes

        yield describe
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def by_a_portable_mount(store: Store) -> AsyncIterator[Describe]:
    async with open_fetcher(store, ScriptedSource()) as fetcher:
        request = cast("MountRequest", MountRequest(None, Path("/mnt"), Path("/store"), None, None, "off"))  # type: ignore[arg-type]
        files = FileSystem(Tree([layer.entries for layer in LAYERS]), LAYERS, fetcher)
        mount = PortableMount(request, IMAGE, LAYERS, store, fetcher, files, Failures())

        async def describe() -> Told:
            status = json.loads(await mount.status())
            return status["complete"], status["missing_chunks"], status["missing_bytes"], status["total_bytes"]

        yield describe


@pytest.mark.parametrize("asked", [by_lazyfsd, by_a_portable_mount], ids=lambda asked: asked.__name__)
async def test_a_status_looks_once(
    store: Store, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, asked: Callable[[Store], AsyncIterator[Describe]]
) -> None:
    """At every chunk, and at no file of the store; afterwards it knows what comes and goes."""
    monkeypatch.setattr("lazyfs.store.tally._LOOK_PAUSE", 1e9)
    looks: list[int] = []
    look = store.index.held_many
    monkeypatch.setattr(store.index, "held_many", lambda names: (looks.append(len(names)), look(names))[1])
    monkeypatch.setattr(os, "scandir", None)
    async with asked(store) as describe:  # type: ignore[attr-defined]
        assert await describe() == (False, 5, 50, 50)
        for number, chunk in enumerate(CHUNKS):
            store.keep(content_of([chunk]), 0, b"%010d" % number)
            for _ in range(3):
                assert await describe() == (number == 4, 4 - number, 10 * (4 - number), 50)
        assert looks == [5]
        store.index.change()
        gone = content_of(CHUNKS[:1]).name
        freed = store.eviction.remove(None, InUse(), lambda name: name != gone, mounted_too=False)
        assert freed.names == (gone,)
        assert await describe() == (False, 1, 10, 50)
        assert looks == [5, 1]
