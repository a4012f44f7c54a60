"""Claims of runs that begin at the same moment, made in one go.

A claim is two questions to the index, and a trip to a thread and back. Each of them costs little, and more of them at once cost each
other much more: threads that wait for the index, and for the interpreter. So while a thread asks for some runs, those that begin
meanwhile gather, and the next trip asks for all of them. Nobody waits for company: who comes alone goes at once.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import trio

from lazyfs.fetch.claim import Order, claim_missing, claim_together
from lazyfs.fetch.piece import Piece
from lazyfs.store.store import Store

_FEW: Final = 8
"""Pieces. Longer runs have a thread of their own: others do not wait for what they ask."""


class _Turn:
    """An order that waits for its answer, or to be the one that asks for all who wait."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.come = trio.Event()
        self.answered = False
        self.answer: list[Piece] | None = None
        self.error: Exception | None = None


class Claimer:
    """Claims for the runs of one fetcher."""

    def __init__(self, store: Store, threads: trio.CapacityLimiter) -> None:
        self._store = store
        self._threads = threads
        self._waiting: list[_Turn] = []
        self._asking = False

    async def claim(self, order: Order) -> list[Piece]:
        """See `claim_missing`. Whoever gets them releases them; so this cannot be cancelled while it waits for its answer."""
        answer: list[Piece] | None = None
        if len(order.pieces) <= _FEW:
            with trio.CancelScope(shield=True):
                answer = await self._claim_together(order)
        if answer is None:
            answer = await trio.to_thread.run_sync(partial(claim_missing, self._store, order), limiter=self._threads)
        return answer

    async def _claim_together(self, order: Order) -> list[Piece] | None:
        turn = _Turn(order)
        self._waiting.append(turn)
        if self._asking:
            await turn.come.wait()
        if not turn.answered:
            await self._ask()
        if turn.error is not None:
            raise turn.error
        return turn.answer

    async def _ask(self) -> None:
        turns, self._waiting = self._waiting, []
        self._asking = True
        try:
            ask = partial(claim_together, self._store, [turn.order for turn in turns])
            for turn, answer in zip(turns, await trio.to_thread.run_sync(ask, limiter=self._threads), strict=True):
                turn.answer = answer
        except Exception as error:  # noqa: BLE001  # not swallowed: it goes to those who asked
            for turn in turns:
                turn.error = error
        finally:
            for turn in turns:
                turn.answered = True
                turn.come.set()
            self._asking = bool(self._waiting)
            if self._waiting:
                self._waiting[0].come.set()  # it asks for all who wait by then
