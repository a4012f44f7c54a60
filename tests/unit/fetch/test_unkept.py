"""What a full store refuses is served from memory, up to a limit."""

from __future__ import annotations

import logging

import pytest

from lazyfs.errors import StoreFull
from lazyfs.fetch import unkept
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.fetch.unkept import Unkept
from lazyfs.format.digest import digest_of
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.fetch.scripted import RANDOM, ScriptedSource, make_layer, read_piece

FULL = StoreFull("no room")


def test_the_oldest_is_dropped_first(monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch) -> None:
    """Whatever the sizes. A repeated chunk counts once, and the newest stays, however large it is."""
    expect_log("without storing it: no room")
    monkeypatch.setattr(unkept, "UNKEPT_BYTES", 100)
    held = Unkept("docker://r/app")
    for number in range(10):
        held.remember(b"%d" % number, memoryview(bytes(30)), FULL, digest_of(b""))
        held.remember(b"%d" % number, memoryview(bytes(30)), FULL, digest_of(b""))
        assert held.size <= 100
    assert [number for number in range(10) if b"%d" % number in held] == [7, 8, 9]
    held.remember(b"large", memoryview(bytes(1000)), FULL, digest_of(b""))
    assert b"large" in held and held.size == 1000 and b"9" not in held
    held.remember(b"small", memoryview(bytes(1)), FULL, digest_of(b""))
    assert b"large" not in held and held.size == 1
    assert held.count == 22


async def test_a_full_store_takes_no_more_memory_than_that(
    store: Store, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is read twice, chunk by chunk: every byte is right, memory is bounded, and one line says why, with the layer and
    the image."""
    monkeypatch.setattr(unkept, "UNKEPT_BYTES", 300_000)
    large = RANDOM.randbytes(1_000_000)
    layer, blob = make_layer([(b"large", large)], chunk_size=100_000)
    expect_log(f"serving layer {layer.digest} of docker://r/app from memory without storing it: no room")

    def refuse(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(store, "keep", refuse)
    async with open_fetcher(store, ScriptedSource(blob), image="docker://r/app") as fetcher:
        for _ in range(2):
            assert b"".join([await read_piece(fetcher, layer, number) for number in range(10)]) == large
            assert fetcher._shared.unkept.size <= 300_000
        assert fetcher.statistics().unkept > 10
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1
