"""The gate's answers, with a scripted source, a real store, and virtual time where time passes."""

from __future__ import annotations

import logging
import math
import os
import random
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import Unreachable
from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.gate import gate
from lazyfs.gate.catalog import Catalog, LayerObjects
from lazyfs.gate.gate import LOOKUP_TIMEOUT, Attributes, Gate
from lazyfs.gate.inode import NOWHERE, OBJECTS, ROOT, inode_of, record_inode
from lazyfs.store.content import Content
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from lazyfs.tasks import Failures
from tests.unit.fetch.scripted import ScriptedSource, make_layer, pass_time, settle

RANDOM = random.Random(2)
SMALL = [(b"f%03d" % number, RANDOM.randbytes(100 + 61 * number)) for number in range(50)]
LARGE = RANDOM.randbytes(450_000)


class Setting:
    """A gate over one image of one layer, and records of what happened."""

    def __init__(self, store: Store, layer: LayerBlob, source: ScriptedSource) -> None:
        self.layer = layer
        self.source = source
        self.catalog = Catalog()
        self.catalog.begin()
        self.metadata_threads: set[int] = set()
        self.touched: list[tuple[int, str]] = []
        self.running = 0
        """How often the call of a thread is unknown at first."""
        self.fetcher: Fetcher
        self.gate = Gate(store, self.catalog, lambda *touch: self.touched.append(touch), self._is_metadata_call, Failures())

    def _is_metadata_call(self, thread: int) -> bool | None:
        if self.running:
            self.running -= 1
            return None
        return thread in self.metadata_threads

    def name(self, number: int) -> bytes:
        """Name of the object of the layer's n-th piece."""
        return self.layer.pieces[number].content.name.encode()


@asynccontextmanager
async def open_gate(store: Store) -> AsyncIterator[Setting]:
    layer, blob = make_layer([*SMALL, (b"large", LARGE)], chunk_size=100_000)
    setting = Setting(store, layer, ScriptedSource(blob))
    async with open_fetcher(store, setting.source) as fetcher:
        setting.fetcher = fetcher
        setting.catalog.add("image", fetcher, (LayerObjects("layer", layer),))
        yield setting


async def ask(setting: Setting, number: int, answers: list[Attributes | None]) -> None:
    """One lookup, whose answer is added to `answers`."""
    answers.append(await setting.gate.lookup(OBJECTS, setting.name(number), 1))


def is_published(store: Store, name: bytes) -> bool:
    """Whether both names of an object are one file."""
    places = [Path(store.directory.path, folder, name.decode()) for folder in ("objects", "arrived")]
    return all(place.exists() for place in places) and places[0].samefile(places[1])


async def test_a_small_file_is_published(store: Store) -> None:
    """A miss of a file of one chunk: it is verified and published, 0444, and the answer is to look further."""
    async with open_gate(store) as setting:
        assert await setting.gate.lookup(OBJECTS, setting.name(7), 1) is None
        assert is_published(store, setting.name(7))
        place = Path(store.directory.objects + setting.name(7).decode())
        assert place.read_bytes() == SMALL[7][1]
        assert stat.S_IMODE(place.stat().st_mode) == 0o444
        assert not setting.gate.served


async def test_a_large_file_is_an_entry_until_it_is_whole(store: Store) -> None:
    """A file of several chunks is served through the gate, chunk by chunk. Once complete, it is found in arrived/."""
    async with open_gate(store) as setting:
        name = setting.name(50)
        shown = await setting.gate.lookup(OBJECTS, name, 1)
        assert shown == Attributes(inode_of(name.decode()), stat.S_IFREG | 0o444, len(LARGE))
        assert setting.gate.served == {name.decode()}
        assert not is_published(store, name)
        for offset in range(0, len(LARGE) + 1, 70_001):
            assert bytes(await setting.gate.read(shown.ino, offset, 70_001)) == LARGE[offset : offset + 70_001]
        assert await setting.gate.read(shown.ino, len(LARGE), 10) == b""
        assert await setting.gate.lookup(OBJECTS, name, 1) is None
        assert is_published(store, name)


async def test_a_metadata_change_fetches_nothing(store: Store) -> None:
    """The lookup of a chown gets an entry, and no byte is fetched. A read of that entry works."""
    async with open_gate(store) as setting:
        setting.metadata_threads.add(42)
        shown = await setting.gate.lookup(OBJECTS, setting.name(3), 42)
        assert shown is not None and not setting.source.ranges
        assert bytes(await setting.gate.read(shown.ino, 0, 1 << 20)) == SMALL[3][1]
        assert await setting.gate.lookup(OBJECTS, setting.name(3), 42) is None, "it is here now, whoever asks"


async def test_a_caller_that_does_not_wait_yet_is_looked_at_again(store: Store) -> None:
    """A few times, for a moment. If its call is still unknown, it is assumed to read."""
    async with open_gate(store) as setting:
        setting.metadata_threads.add(42)
        setting.running = 2
        assert await setting.gate.lookup(OBJECTS, setting.name(3), 42) is not None
        assert not setting.source.ranges
        setting.running = 1000
        assert await setting.gate.lookup(OBJECTS, setting.name(3), 42) is None
        assert setting.source.ranges and setting.running


async def test_names_that_are_not_objects_are_not_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only objects of mounted images are found, and nothing is fetched for other names."""
    async with open_gate(store) as setting:
        stranger = b"sha256-" + b"0" * 64 + b"-1"
        for name in (b"..", b"etc", b"sha256-", b"sha256-" + b"g" * 64, b"record-x", stranger, setting.name(1)[:-1], b"\xff"):
            assert await setting.gate.lookup(OBJECTS, name, 1) is None
        with pytest.raises(Unreachable):
            with trio.fail_after(5):
                await setting.gate.attributes(inode_of(stranger.decode()))
        number = inode_of(setting.name(1).decode())
        monkeypatch.setattr(gate, "inode_of", lambda _: number)
        assert await setting.gate.lookup(OBJECTS, stranger, 1) is None, "an equal inode number is not an equal name"
        assert not setting.source.ranges


async def test_directories_of_the_gate(store: Store) -> None:
    """The root has only directories. The one behind all other layers returns an error for everything, also for objects."""
    async with open_gate(store) as setting:
        for name, inode in ((b"objects", OBJECTS), (b"nowhere", NOWHERE), (b"record-7", record_inode(7))):
            shown = await setting.gate.lookup(ROOT, name, 1)
            assert shown == Attributes(inode, stat.S_IFDIR | 0o555, nlink=2)
            assert await setting.gate.attributes(inode) == shown
        for name in (b"record-", b"record-x", b"7", b"arrived", setting.name(1)):
            assert await setting.gate.lookup(ROOT, name, 1) is None
        for name in (setting.name(1), b"sha256-" + b"0" * 64, b"x"):
            with pytest.raises(Unreachable):
                await setting.gate.lookup(NOWHERE, name, 1)
        assert not setting.source.ranges


async def test_a_slow_registry_becomes_an_entry(store: Store, autojump_clock: MockClock) -> None:
    """A caller cannot be killed in a lookup: after two seconds it gets an entry, and waits in a read."""
    async with open_gate(store) as setting:
        autojump_clock.autojump_threshold = math.inf  # threads take real time
        setting.source.gate = trio.Event()
        answers: list[Attributes | None] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, setting, 5, answers)
            await wait_all_tasks_blocked(0.05)
            autojump_clock.jump(LOOKUP_TIMEOUT - 0.01)
            await wait_all_tasks_blocked(0.05)
            assert not answers
            autojump_clock.jump(0.02)
        [shown] = answers
        assert shown is not None and setting.gate.counts["late"] == 1
        setting.source.gate.set()
        assert bytes(await setting.gate.read(shown.ino, 0, 1 << 20)) == SMALL[5][1]


async def test_a_failing_registry_becomes_an_entry_and_an_error(store: Store) -> None:
    """A failing miss becomes an entry whose reads fail, each after a new try. Once the cause is gone, the same entry works."""
    async with open_gate(store) as setting:
        setting.source.fails = 1000
        shown = await setting.gate.lookup(OBJECTS, setting.name(5), 1)
        assert shown is not None
        with pytest.raises(Unreachable):
            await setting.gate.read(shown.ino, 0, 100)
        setting.source.fails = 0
        assert bytes(await setting.gate.read(shown.ino, 0, 1 << 20)) == SMALL[5][1]


async def test_an_object_removed_by_hand_is_fetched_again(store: Store, expect_log: Callable[[str], None]) -> None:
    """An object that is in the index but not on disk is missing."""
    expect_log("files? (is|are) missing")
    async with open_gate(store) as setting:
        assert await setting.gate.lookup(OBJECTS, setting.name(9), 1) is None
        for folder in ("objects", "arrived"):
            os.unlink(store.directory.path / folder / setting.name(9).decode())
        assert await setting.gate.lookup(OBJECTS, setting.name(9), 1) is None
        assert is_published(store, setting.name(9))


async def test_one_name_removed_by_hand_is_put_back(store: Store) -> None:
    """If one of the two names is left, nothing is fetched."""
    async with open_gate(store) as setting:
        assert await setting.gate.lookup(OBJECTS, setting.name(9), 1) is None
        asked = len(setting.source.ranges)
        os.unlink(store.directory.path / "arrived" / setting.name(9).decode())
        assert await setting.gate.lookup(OBJECTS, setting.name(9), 1) is None
        assert is_published(store, setting.name(9)) and len(setting.source.ranges) == asked


async def test_a_recording_directory_reports_what_is_touched(store: Store) -> None:
    """Lookups below `record-N` are reported with their number, in order, but not those of a chown, nor those of the root."""
    async with open_gate(store) as setting:
        setting.metadata_threads.add(42)
        directory = await setting.gate.lookup(ROOT, b"record-17", 1)
        assert directory == Attributes(record_inode(17), stat.S_IFDIR | 0o555, nlink=2)
        assert await setting.gate.attributes(directory.ino) == directory
        for number, thread in ((4, 1), (2, 1), (6, 42), (4, 1)):
            await setting.gate.lookup(directory.ino, setting.name(number), thread)
        await setting.gate.lookup(OBJECTS, setting.name(8), 1)
        assert setting.touched == [(17, setting.name(number).decode()) for number in (4, 2, 4)]


async def test_lookups_wait_for_an_image_that_is_being_indexed(store: Store, autojump_clock: MockClock) -> None:
    """An unknown object is never "not found": the answer waits, and is an error if the image is not indexed in time."""
    async with open_gate(store) as setting:
        setting.catalog.remove("image")
        setting.catalog.expect("image")
        with pytest.raises(Unreachable, match="not indexed"):
            await setting.gate.lookup(OBJECTS, setting.name(1), 1)
        async with open_fetcher(store, setting.source) as fetcher:
            autojump_clock.autojump_threshold = math.inf
            answers: list[Attributes | None] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, setting, 1, answers)
                await wait_all_tasks_blocked()
                setting.catalog.add("image", fetcher, (LayerObjects("layer", setting.layer),))
        assert answers == [None]


async def test_another_image_delivers_what_the_first_cannot(store: Store) -> None:
    """An object of two images is fetched from the second one's registry if the first one's fails."""
    async with open_gate(store) as setting:
        setting.source.fails = 1000
        other = ScriptedSource(setting.source.blobs[setting.layer.digest])
        async with open_fetcher(store, other) as fetcher:
            setting.catalog.add("other", fetcher, (LayerObjects("other", setting.layer),))
            assert await setting.gate.lookup(OBJECTS, setting.name(11), 1) is None
            assert is_published(store, setting.name(11)) and other.ranges


async def test_a_layer_that_lies_plants_nothing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that do not hash to the name are not published, and logged. The honest image beside it gets its own."""
    caplog.set_level(logging.INFO, "lazyfs")
    async with open_gate(store) as setting:
        name, piece = setting.name(13), setting.layer.pieces[13]
        blob = setting.source.blobs[setting.layer.digest]
        lie = bytearray(blob)
        lie[piece.chunk.member + 20] ^= 0xFF
        liar = ScriptedSource(bytes(blob))
        liar.blobs[setting.layer.digest] = bytes(lie)
        setting.catalog.remove("image")
        async with open_fetcher(store, liar, image="docker://r/liar") as bad, open_fetcher(store, setting.source) as good:
            setting.catalog.add("liar", bad, (LayerObjects("liar", setting.layer),))
            assert await setting.gate.lookup(OBJECTS, name, 1) is not None, "an entry, whose reads fail"
            (line,) = [record.message for record in caplog.records if "is served through the gate" in record.message]
            assert f"object {name.decode()} of layer {setting.layer.digest} of docker://r/liar" in line
            assert not is_published(store, name)
            setting.catalog.add("honest", good, (LayerObjects("honest", setting.layer),))
            shown = await setting.gate.attributes(inode_of(name.decode()))
            assert bytes(await setting.gate.read(shown.ino, 0, 1 << 20)) == SMALL[13][1], (
                "who has that entry reads it all the same"
            )
            assert await setting.gate.lookup(OBJECTS, name, 1) is None
        assert Path(store.directory.objects + name.decode()).read_bytes() == SMALL[13][1]


async def test_sixty_four_lookups_of_one_object_are_one_request(store: Store) -> None:
    """Lookups that come while it is in flight wait for the same flight."""
    async with open_gate(store) as setting:
        setting.source.gate = trio.Event()
        answers: list[Attributes | None] = []
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(ask, setting, 20, answers)
            await wait_all_tasks_blocked(0.05)
            setting.source.gate.set()
        assert answers == [None] * 64 and len(setting.source.ranges) == 1


def evict_everything(store: Store, gate: Gate) -> int:
    """As lazyfsd does when the store is full."""
    store.durability.make_durable()
    return store.eviction.remove(None, InUse(), gate.announced, mounted_too=True).objects


async def test_an_object_stays_between_the_answer_and_the_open(store: Store) -> None:
    """overlayfs was sent to arrived/: an eviction before it looks leaves that object, and removes others."""
    async with open_gate(store) as setting:
        piece = setting.layer.pieces[8]
        store.keep(piece.content, piece.number, SMALL[8][1])
        assert await setting.gate.lookup(OBJECTS, setting.name(7), 1) is None
        assert evict_everything(store, setting.gate)
        assert is_published(store, setting.name(7)) and not is_published(store, setting.name(8))


async def test_an_object_that_is_found_is_protected_before_it_is_looked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eviction between the check and the answer: if the name were noted only afterwards, the answer would be a missing file."""
    async with open_gate(store) as setting:
        piece = setting.layer.pieces[7]
        store.keep(piece.content, piece.number, SMALL[7][1])
        publish = store.publish

        def publish_and_evict(content: Content) -> bool:
            is_published = publish(content)
            evict_everything(store, setting.gate)
            return is_published

        monkeypatch.setattr(store, "publish", publish_and_evict)
        assert await setting.gate.lookup(OBJECTS, setting.name(7), 1) is None
        assert is_published(store, setting.name(7)) and not setting.source.ranges


async def test_a_trickling_image_does_not_hold_up_what_it_shares(store: Store, autojump_clock: MockClock) -> None:
    """A read of a file that a second image has too: only bytes for its own run count, and not for long."""
    async with open_gate(store) as setting:
        autojump_clock.autojump_threshold = math.inf
        other = ScriptedSource(setting.source.blobs[setting.layer.digest])
        setting.source.rate = 10  # all of it, in ten minutes
        async with open_fetcher(store, other) as fetcher, trio.open_nursery() as nursery:
            setting.catalog.add("other", fetcher, (LayerObjects("other", setting.layer),))
            got: list[bytes] = []

            async def read() -> None:
                got.append(bytes(await setting.gate.read(inode_of(setting.name(49).decode()), 0, 1 << 20)))

            nursery.start_soon(read)
            await pass_time(autojump_clock, setting.fetcher, 14)
            assert setting.source.ranges and not got and not other.ranges
            await pass_time(autojump_clock, setting.fetcher, 2)
            await settle(fetcher)
            assert got == [SMALL[49][1]]


async def test_other_bytes_of_an_image_are_no_sign_of_life(store: Store, autojump_clock: MockClock) -> None:
    """It is busy with another file, and silent about this one."""
    async with open_gate(store) as setting:
        autojump_clock.autojump_threshold = math.inf
        other = ScriptedSource(setting.source.blobs[setting.layer.digest])
        async with open_fetcher(store, other) as fetcher, trio.open_nursery() as nursery:
            setting.source.rate = 100
            nursery.start_soon(setting.fetcher.read, setting.layer, setting.layer.pieces[52], 0, 1)
            await settle(setting.fetcher)
            setting.source.gate = trio.Event()
            setting.catalog.add("other", fetcher, (LayerObjects("other", setting.layer),))
            got: list[bytes] = []

            async def read() -> None:
                got.append(bytes(await setting.gate.read(inode_of(setting.name(3).decode()), 0, 1 << 20)))

            nursery.start_soon(read)
            await pass_time(autojump_clock, setting.fetcher, 6)
            await settle(fetcher)
            assert got == [SMALL[3][1]]
            setting.source.gate.set()
            nursery.cancel_scope.cancel()
