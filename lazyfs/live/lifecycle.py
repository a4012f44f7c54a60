"""The states of live layers, sources and pulls, and the allowed transitions.

Each starts in the first state of its table and ends in the last one. A transition that is not in the table is a defect: it
raises RuntimeError, and the task fails.

    layer     EXPECTED   has a user, and is being indexed; the gate waits for it
              KNOWN      the gate knows its objects, and who fetches them
              ENDED      has no user and is not found; the next user makes a new one
    source    OPENING    has no fetcher yet, or its last one has failed and the next one is being opened
              READY      its fetcher works
              ENDED      is not found; its flights are completed, and its connections are being closed
              CLOSED
    pull      STARTING   waits for the layer to be indexed, and fetches its prefetch range
              WAITING    the rest waits for a quiet period, and in the queue of its source
              ENDED      everything was fetched except what cannot be; or the pull was stopped
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
    """The current state. Every transition wakes the waiters."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.state = next(iter(table))
        self._changed = trio.Event()

    def is_in(self, *states: State) -> bool:
        """Whether the current state is one of these."""
        return self.state in states

    def move(self, state: State) -> None:
        """Enter a state. Raises RuntimeError if the table does not allow it."""
        if state not in self._table[self.state]:
            raise RuntimeError(f"{self.state.name} cannot be followed by {state.name}")
        self.state = state
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for(self, *states: State) -> State:
        """Wait for one of `states`, and return the current state. Also returns when no transition is left.

        A caller that was cancelled gets Cancelled even if there is nothing to wait for: at shutdown, a source that has ended is
        not a failure of the layer that waits for it.
        """
        while self.state not in states and self._table[self.state]:
            await self._changed.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self.state
