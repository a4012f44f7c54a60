"""The scrub, step by step."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lazyfs.kernel.page_cache import cached_pages
from lazyfs.store.scrub import Scrub
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, flip, keep_all, noise

SEVERAL = [noise(70_000, 1), noise(300, 2)]


def never(name: str) -> bool:
    return False


def test_every_chunk_is_read_once_a_round(store: Store) -> None:
    """In steps of about the requested size. The last step of a round says so."""
    for seed in range(10):
        keep_all(store, [noise(1000, seed)])
    keep_all(store, SEVERAL)
    store.index.change()
    scrub = Scrub(store, never)
    for number in (1, 2):
        steps = [scrub.step(2000)]
        while not steps[-1].is_last:
            steps.append(scrub.step(2000))
        assert (scrub.chunks, scrub.bytes, scrub.rounds) == (12 * number, 80_300 * number, number)
        assert sum(step.bytes for step in steps) == 80_300
        assert all(2000 <= step.bytes <= 72_000 for step in steps[:-1])
        assert not any(step.dropped for step in steps)


def test_damage_is_dropped_and_named(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """The object is not complete any more."""
    made, _ = keep_all(store, SEVERAL), keep_all(store, [noise(10)])
    flip(directory / "objects" / made.name)
    store.index.change()
    expect_log("dropped (a )?damaged")
    scrub = Scrub(store, never)
    assert scrub.step(10**9).dropped == (made.name,)
    assert (scrub.damaged, store.damaged) == (1, 1)
    assert not (directory / "objects" / made.name).exists()


def test_what_was_evicted_meanwhile_is_not_damage(store: Store) -> None:
    """Its rows were read before they were deleted."""
    made = keep_all(store, SEVERAL)
    store.index.change()
    scrub = Scrub(store, never)
    scrub.step(1)
    store.index.change(lambda db: db.execute("DELETE FROM chunk") and None)
    store.files.remove(made.name)
    assert scrub.step(10**9).is_last
    assert (scrub.damaged, store.damaged) == (0, 0)


def test_the_page_cache_stays_as_it_is(store: Store, directory: Path) -> None:
    """Pages that nobody else has read do not stay cached: it would look as if somebody had."""
    made = [keep_all(store, [noise(40_000, seed)]) for seed in range(2)]
    store.durability.make_durable()
    files = [os.open(directory / "objects" / one.name, os.O_RDONLY) for one in made]
    os.posix_fadvise(files[0], 0, 0, os.POSIX_FADV_DONTNEED)
    before = [cached_pages(fd) for fd in files]
    Scrub(store, never).step(10**9)
    assert [cached_pages(fd) for fd in files] == before
    for fd in files:
        os.close(fd)


def test_strays_go(store: Store, directory: Path) -> None:
    """Files that lost their rows when a process was killed, after an hour, unless they were announced."""
    made = keep_all(store, SEVERAL)
    old, answered, fresh, twin, under_way = (content(b"stray", bytes([number])).name for number in range(5))
    for folder, names in {
        "objects": (old, answered, fresh),
        "arrived": (old, answered, fresh, twin),
        "partial": (under_way,),
    }.items():
        for name in names:
            (directory / folder / name).write_bytes(b"")
            if name != fresh:
                os.utime(directory / folder / name, (0, time.time() - 4000))
    assert Scrub(store, lambda name: name == answered).step(10**9).is_last
    assert set(os.listdir(directory / "objects")) == set(os.listdir(directory / "arrived")) == {made.name, answered, fresh}
    assert os.listdir(directory / "partial") == []
