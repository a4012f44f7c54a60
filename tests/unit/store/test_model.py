"""The store against a model: a dictionary of what was kept, and of what damage may remove.

Two stores on one directory stand for two processes. A read returns the right bytes, or nothing if something was damaged, but
never other bytes. What is undamaged stays.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lazyfs.store.content import Content
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from lazyfs.store.tally import Missing
from tests.unit.store.contents import DAMAGES, content, noise, read_all, under_way

_A, _B, _C, _D = noise(70_000, 1), noise(5, 2), noise(4096, 3), noise(65_536, 4)
FILES = [[_A], [_B], [_A, _B], [_B, _A, _B], [_C, _D, _C, _A]]
CONTENTS = [content(*pieces) for pieces in FILES]
CHUNKS = [(number, index) for number, pieces in enumerate(FILES) for index in range(len(pieces))]

SIDES = st.integers(0, 1)
PLACES = st.sampled_from(CHUNKS)


def counted(store: Store, contents: list[Content]) -> Missing:
    """What is missing of these, counted one by one."""
    kinds = {
        made.digests[index]: made.chunk_size(index)
        for made, missing in zip(contents, store.missing_many(contents), strict=True)
        for index in missing
    }
    return Missing(len(kinds), sum(kinds.values()))


class StoreMachine(RuleBasedStateMachine):
    """`here` contains the chunks that must be in the store. Those of a damaged file may be, with the right bytes."""

    def __init__(self) -> None:
        super().__init__()
        logging.getLogger("lazyfs.store").setLevel(logging.ERROR)
        self.folder = Path(tempfile.mkdtemp(prefix="lazyfs-model-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.stores = [Store.open(self.folder / "store") for _ in range(2)]
        self.tallies = [store.tally(CONTENTS) for store in self.stores]
        self.here: set[tuple[int, int]] = set()
        self.maybe: set[tuple[int, int]] = set()
        self.numbers = itertools.count()

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)
        logging.getLogger("lazyfs.store").setLevel(logging.NOTSET)

    @rule(side=SIDES, place=PLACES)
    def keep(self, side: int, place: tuple[int, int]) -> None:
        number, index = place
        self.stores[side].keep(CONTENTS[number], index, FILES[number][index])
        self.stores[side].index.change()
        self.here.add(place)
        self.maybe.discard(place)

    @rule(side=SIDES, place=PLACES, data=st.data())
    def read(self, side: int, place: tuple[int, int], data: Any) -> None:
        number, index = place
        piece = FILES[number][index]
        start = data.draw(st.integers(0, len(piece)))
        length = data.draw(st.integers(0, len(piece) - start))
        self.judge(place, self.stores[side].read(CONTENTS[number], index, start, length), piece[start : start + length])

    def judge(self, place: tuple[int, int], got: bytes | None, right: bytes) -> None:
        if place in self.here:
            assert got == right
        elif place in self.maybe:
            assert got in (None, right)
        else:
            assert got is None

    @rule(side=SIDES, place=PLACES)
    def copy(self, side: int, place: tuple[int, int]) -> None:
        number, index = place
        same = {(n, i) for n, i in CHUNKS if FILES[n][i] == FILES[number][index]}
        copied = self.stores[side].copy_local(CONTENTS[number], index)
        if same & self.here and not same & self.maybe:
            assert copied
        if not same & (self.here | self.maybe):
            assert not copied
        if copied:
            self.stores[side].index.change()
            if place not in self.here:
                self.maybe.add(place)

    @precondition(lambda self: self.here)
    @rule(damage=st.sampled_from(sorted(DAMAGES)), data=st.data())
    def damage(self, damage: str, data: Any) -> None:
        """The disk fails. Both stores are reopened, because chunks are checked only once."""
        for store in self.stores:
            store.close()
        files = sorted(path for folder in ("objects", "partial") for path in (self.folder / "store" / folder).iterdir())
        if files:
            path = data.draw(st.sampled_from(files))
            DAMAGES[damage](path)
            hit = {(n, i) for n, i in CHUNKS if CONTENTS[n].name == path.name} & self.here
            self.here -= hit
            self.maybe |= hit
        self.stores = [Store.open(self.folder / "store") for _ in range(2)]
        self.tallies = [store.tally(CONTENTS) for store in self.stores]

    @rule(side=SIDES)
    def reopen(self, side: int) -> None:
        self.stores[side].close()
        self.stores[side] = Store.open(self.folder / "store")
        self.tallies[side] = self.stores[side].tally(CONTENTS)

    @precondition(lambda self: self.here)
    @rule(side=SIDES, number=st.integers(0, len(FILES) - 1), spared=st.booleans())
    def evict(self, side: int, number: int, spared: bool) -> None:
        """One file goes. With `spared`, it is announced after its rows were deleted, and they are restored."""
        name = CONTENTS[number].name
        answers = itertools.count()
        others = InUse({made.name for made in CONTENTS} - {name})
        freed = self.stores[side].eviction.remove(
            None, others, lambda each: spared and each == name and next(answers) > 0, mounted_too=False
        )
        if name in freed.names:
            self.stores[1 - side]._open.forget(name)  # another process that has it open continues to serve it, correctly
            lost = {(number, index) for index in range(len(FILES[number]))}
            self.here -= lost
            self.maybe -= lost

    @precondition(lambda self: self.here)
    @rule(side=SIDES, number=st.integers(0, len(FILES) - 1))
    def remove_by_hand(self, side: int, number: int) -> None:
        """A file is removed, and a reader notices. The other process reopens the store, because it may have the file open."""
        made = CONTENTS[number]
        for folder in ("objects", "arrived", "partial"):
            (self.folder / "store" / folder / made.name).unlink(missing_ok=True)
        lost = {(number, index) for index in range(len(FILES[number]))}
        self.here -= lost
        self.maybe |= lost
        self.reopen(1 - side)
        self.stores[side]._open.forget(made.name)
        for index in range(len(FILES[number])):
            self.stores[side].read(made, index, 0, 1)
        self.stores[side].index.change()
        self.maybe -= lost

    @rule()
    def read_everything(self) -> None:
        for store in self.stores:
            for number, made in enumerate(CONTENTS):
                for index, got in enumerate(read_all(store, made)):
                    self.judge((number, index), got, FILES[number][index])

    @invariant()
    def what_is_here_is_not_missing(self) -> None:
        for store in self.stores:
            for number, missing in enumerate(store.missing_many(CONTENTS)):
                absent = {(number, index) for index in missing}
                assert not absent & self.here
                assert missing == store.missing(CONTENTS[number], 0, len(FILES[number]))
                unknown = {(number, index) for index in range(len(FILES[number]))} - self.here - self.maybe
                assert unknown <= absent

    @invariant()
    def counters_are_right(self) -> None:
        """A tally is exact for its own process. It sees what another one keeps a moment later, and removals at once."""
        for store, tally in zip(self.stores, self.tallies, strict=True):
            truth = counted(store, CONTENTS)
            assert tally.measure().chunks >= truth.chunks, "nothing that is missing counts as here"
            tally._pause_until = 0.0  # the moment is over
            assert tally.measure() == truth

    @invariant()
    def nothing_lies_twice(self) -> None:
        folders = ("objects", "arrived", "partial")
        objects, arrived, partial = (set(os.listdir(self.folder / "store" / folder)) for folder in folders)
        assert not objects & partial
        assert objects == arrived
        assert not any(under_way(store) for store in self.stores)


class LongStoreMachine(StoreMachine):
    """The same, for longer."""


StoreMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
LongStoreMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase
TestStoreForLong = pytest.mark.slow(LongStoreMachine.TestCase)
TestStore.__doc__ = TestStoreForLong.__doc__ = (
    "Any sequence of keeping, reading, copying, damage and reopening, by two processes, agrees with the model."
)
