"""What all runs of one fetcher share: store, source, threads, slots and counters."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import Final

import trio

from lazyfs.fetch.batcher import Batcher
from lazyfs.fetch.claim import claim_together
from lazyfs.fetch.flight import SourceFlights, StoreFlights
from lazyfs.fetch.slots import Slots
from lazyfs.fetch.unkept import Unkept
from lazyfs.fetch.unpack import unpack_together
from lazyfs.format.digest import Digest
from lazyfs.source.protocol import ImageSource
from lazyfs.store.store import Store

_RUNS: Final = 48
"""Concurrent range requests of readers. The background and runs of large members are not counted. With 64 readers of 1,280
scattered files and a round trip of 20 ms, the round trips alone take 1.6 s with 16 requests, and everything takes 15 % longer
with 32 than with 64 (bench/late.py).
"""
_LARGE_RUNS: Final = 8
"""Concurrent runs of large members, which have 4 MiB by default."""
_LAYERS: Final = 8
"""Concurrent layers that are fetched whole."""


class Shared:
    """Belongs to one fetcher. For the event loop only."""

    def __init__(self, store: Store, source: ImageSource, store_flights: StoreFlights | None = None, image: str = "") -> None:
        """`store_flights`: shared with the other fetchers of this store in this process. `image`: for the log; default: the source's name."""
        self.store = store
        self.source = source
        self.image = image or source.name
        self.flights = SourceFlights(store_flights)
        self.rangeless: set[Digest] = set()
        """Layers for which the source has answered a range request with the whole blob."""
        self.doubted: set[Digest] = set()
        """Layers with chunks that did not match their digests: logged once each."""
        # Inflating and hashing need the CPU: with more jobs than cores, each would only be slower. Reads of the store have
        # their own threads, so that stored chunks never queue behind arriving ones.
        self.unpackers = trio.CapacityLimiter((os.cpu_count() or 1) + 1)
        self.readers = trio.CapacityLimiter(16)
        self.claims = Batcher(partial(claim_together, store), self.readers, at_once=1)  # the index answers one query at a time
        self.small = Batcher(partial(unpack_together, store), self.unpackers, at_once=2)  # a disk may be slow
        self.jobs = trio.Semaphore(int(self.unpackers.total_tokens))  # each holds a chunk twice: 8 MiB by default
        self.slots = Slots(_RUNS)
        self.large_slots = Slots(_LARGE_RUNS)
        self.layer_slots = Slots(_LAYERS)
        self.unkept = Unkept(self.image)
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
