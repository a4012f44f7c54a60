"""What all runs of one fetcher share: the store, the source, the threads, the slots and the counters."""

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
"""Range requests of readers at once; the background has its own, and so have runs of large members. 64 readers of 1,280 files that lie
strewn, 20 ms away: the round trips alone take 1.6 s with 16, and all of it 15 % longer with 32 than with 64 (bench/late.py)."""
_LARGE_RUNS: Final = 8
"""Large ones at once, of 4 MiB by default."""
_LAYERS: Final = 8
"""Layers at once that come as a whole."""


class Shared:
    """One fetcher's. Used on the event loop only."""

    def __init__(self, store: Store, source: ImageSource, store_flights: StoreFlights | None = None) -> None:
        """`store_flights`: shared with the other fetchers of this store in this process."""
        self.store = store
        self.source = source
        self.flights = SourceFlights(store_flights)
        self.rangeless: set[Digest] = set()
        """Layers of which the source has answered a range with the whole blob."""
        self.doubted: set[Digest] = set()
        """Layers of which something came wrong: that is logged once."""
        # Inflating and hashing is CPU: more jobs than cores would only share them. Reads of the store have their own
        # threads, so that what is here never queues behind what is arriving.
        self.unpackers = trio.CapacityLimiter((os.cpu_count() or 1) + 1)
        self.readers = trio.CapacityLimiter(16)
        self.claims = Batcher(partial(claim_together, store), self.readers, at_once=1)  # the index answers one at a time
        self.small = Batcher(partial(unpack_together, store), self.unpackers, at_once=2)  # a disk may be slow
        self.jobs = trio.Semaphore(int(self.unpackers.total_tokens))  # each holds a chunk twice: 8 MiB by default
        self.slots = Slots(_RUNS)
        self.large_slots = Slots(_LARGE_RUNS)
        self.layer_slots = Slots(_LAYERS)
        self.unkept = Unkept()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
