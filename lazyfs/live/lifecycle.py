"""The states of what lives, and the order in which they may follow each other.

Everything here is made in the first state of its table, and ends in the last one. A step that the table does not have is a defect: it
raises RuntimeError, and the task that took it fails.

    layer     EXPECTED   something uses it, and the gate waits for it: it is being indexed
              KNOWN      the gate knows what it holds, and who fetches that
              ENDED      nothing uses it, and nothing finds it: the next user makes another one
    source    OPENING    it has no fetcher, or its last one has failed and the next one is on its way
              READY      its fetcher works
              ENDED      nothing finds it: its flights land, and its connections are being closed
              CLOSED
    pull      STARTING   waits for the layer to be indexed, and fetches its prefix
              WAITING    the rest waits for a lull, and for its turn among the pulls of its source
              ENDED      all of the layer has come, or what has not cannot be had; or the pull was stopped
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import trio


class State(Enum):
    """See above."""

    EXPECTED = "expected"
    KNOWN = "known"
    OPENING = "opening"
    READY = "ready"
    STARTING = "starting"
    WAITING = "waiting"
    ENDED = "ended"
    CLOSED = "closed"


Table = Mapping[State, frozenset[State]]

LAYER: Final[Table] = {
    State.EXPECTED: frozenset({State.KNOWN, State.ENDED}),
    State.KNOWN: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}
SOURCE: Final[Table] = {
    State.OPENING: frozenset({State.READY, State.ENDED}),
    State.READY: frozenset({State.OPENING, State.ENDED}),
    State.ENDED: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}
PULL: Final[Table] = {
    State.STARTING: frozenset({State.WAITING, State.ENDED}),
    State.WAITING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


class Lifecycle:
    """Where one of them stands. Every step wakes those who wait for one."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.state = next(iter(table))
        self._changed = trio.Event()

    def is_in(self, *states: State) -> bool:
        """Whether it is in one of these states now."""
        return self.state in states

    def move(self, state: State) -> None:
        """Take a step. Raises RuntimeError where the table has no such step."""
        if state not in self._table[self.state]:
            raise RuntimeError(f"{self.state.name} cannot be followed by {state.name}")
        self.state = state
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for(self, *states: State) -> State:
        """Wait until it is in one of `states`, and return that one. It returns as well where no step is left.

        A caller that was cancelled gets Cancelled, even where there is nothing to wait for: at a shutdown, a source that has ended is not a
        failure of the layer that waits for it.
        """
        while self.state not in states and self._table[self.state]:
            await self._changed.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self.state
