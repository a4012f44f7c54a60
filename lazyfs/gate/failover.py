"""Which of several supplies to an object is taken, where more than one mounted image has it.

Images share files, and so depend on each other's registries, unless care is taken: one that fails is passed over for the next, and
so is one whose bytes are not what they should be. One that is silent is not waited for alone while another may answer, and for a
while the others are asked first.

Silent is not slow: two images on a slow link would fetch everything twice. A sign of life is a byte of the run that brings what is
wanted, or, while that run waits for its turn, of the runs before it. Other bytes of the same image are none, and a source that
trickles gets no more than _WINDOWS times the timeout: an image may be hostile, and hold up what it shares with another.

What was begun is not cancelled when the next source is asked. Whichever comes first is taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import trio

from lazyfs.errors import LazyfsError
from lazyfs.gate.catalog import Supply

_WINDOWS: Final = 3
T = TypeVar("T")


class Failover:
    """Takes one way after the other. Which were passed over, the fetchers remember: no reader of another source joins their flights."""

    async def run(self, supplies: Sequence[Supply], wanted: slice, work: Callable[[Supply], Awaitable[T]], timeout: float) -> T:
        """What `work` makes of one of the supplies. Each has `timeout` seconds for a sign of life while there are others.

        `wanted`: the supply's pieces that `work` waits for. `work` can be cancelled and begun again at no cost. Raises the first
        LazyfsError when no way is left. Cancelled: what is under way arrives all the same.
        """
        supplies = self._sorted(supplies)
        failure: LazyfsError | None = None
        for number, supply in enumerate(supplies[:-1]):
            before = _signs(supply, wanted)
            try:
                with trio.move_on_after(timeout):
                    return await work(supply)
            except LazyfsError as error:
                failure = failure or error
                continue
            hedge = _Hedge(work, wanted, timeout, failure)
            return await hedge.run(supplies[number:], alive=_signs(supply, wanted) != before)
        try:
            return await work(supplies[-1])
        except LazyfsError as error:
            raise failure or error from None

    def _sorted(self, supplies: Sequence[Supply]) -> Sequence[Supply]:
        if len(supplies) < 2:
            return supplies
        return sorted(supplies, key=lambda supply: supply.fetcher.is_passed_over)


class _Hedge(Generic[T]):
    """Several sources are asked, one after the other, and all are waited for."""

    def __init__(
        self, work: Callable[[Supply], Awaitable[T]], wanted: slice, timeout: float, failure: LazyfsError | None
    ) -> None:
        self._work = work
        self._wanted = wanted
        self._timeout = timeout
        self._failure = failure
        self._results: list[T] = []

    async def run(self, supplies: Sequence[Supply], *, alive: bool) -> T:
        """The first of `supplies` has been waited for once; `alive`: it has given a sign of life."""
        windows = _WINDOWS - 1 if alive else 0
        async with trio.open_nursery() as nursery:
            for supply in supplies:
                failed = trio.Event()
                nursery.start_soon(self._try, supply, failed, nursery.cancel_scope)
                if supply is not supplies[-1] and not await self._wait_for_failure(supply, failed, windows):
                    supply.fetcher.pass_over(supply.pieces[self._wanted])
                windows = _WINDOWS
        if self._results:
            return self._results[0]
        assert self._failure is not None
        raise self._failure

    async def _try(self, supply: Supply, failed: trio.Event, all_tries: trio.CancelScope) -> None:
        try:
            result = await self._work(supply)
        except LazyfsError as error:
            self._failure = self._failure or error
            failed.set()
        else:
            self._results.append(result)
            all_tries.cancel()

    async def _wait_for_failure(self, supply: Supply, failed: trio.Event, windows: int) -> bool:
        """Wait until `supply` has failed, or for as long as it is waited for alone."""
        for _ in range(windows):
            before = _signs(supply, self._wanted)
            with trio.move_on_after(self._timeout):
                await failed.wait()
                return True
            if _signs(supply, self._wanted) == before:
                break
        return False


def _signs(supply: Supply, wanted: slice) -> int:
    return supply.fetcher.signs_of_life(supply.pieces[wanted])
