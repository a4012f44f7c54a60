"""Failover: asking another source for an object if the first one does not deliver it.

Images share files, so without care one would depend on the registry of another. A source that fails, or delivers wrong bytes,
is passed over for the next one. A silent source is not waited for alone while another one may answer, and for a while the
others are asked first.

Silent does not mean slow: two images on a slow link would fetch everything twice. A sign of life is a byte for the run that
fetches what is wanted, or, while that run waits for a slot, for a run before it. Other bytes of the same image do not count. A
source that trickles gets at most _WINDOWS timeouts: an image may be hostile, and delay what it shares with another.

A request is not cancelled when the next source is asked. The first result is taken.

An unexpected error (a defect, a lack of memory) counts as a failure of that source: it is logged and counted, and the next source is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

import trio

from lazyfs.errors import LazyfsError, LocalError
from lazyfs.gate.catalog import Supply
from lazyfs.tasks import Failures

_WINDOWS: Final = 3
T = TypeVar("T")


class Failover:
    """Tries the supplies of an object one after the other. The fetchers remember which sources were passed over, so that
    readers of other sources do not join their flights."""

    def __init__(self, failures: Failures) -> None:
        """`failures` counts unexpected errors."""
        self._failures = failures

    async def run(self, supplies: Sequence[Supply], wanted: slice, work: Callable[[Supply], Awaitable[T]], timeout: float) -> T:
        """The result of `work` for one of the supplies. While there are others, each has `timeout` seconds to show a sign of
        life.

        `wanted`: the pieces of the supply that `work` waits for. `work` can be cancelled and repeated at no cost. Raises the
        first LazyfsError when all supplies have failed. Cancelled: what is in flight still arrives.
        """
        work = partial(self._ask, work)
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

    async def _ask(self, work: Callable[[Supply], Awaitable[T]], supply: Supply) -> T:
        try:
            return await work(supply)
        except LazyfsError:
            raise
        except Exception as surprise:
            source = f"layer {supply.layer.digest} of {supply.fetcher.image}"
            self._failures.record("request to a source", surprise, source)
            raise LocalError(f"{source}: a request failed unexpectedly", hint="See the log of lazyfsd") from surprise

    def _sorted(self, supplies: Sequence[Supply]) -> Sequence[Supply]:
        if len(supplies) < 2:
            return supplies
        return sorted(supplies, key=lambda supply: supply.fetcher.is_passed_over)


class _Hedge(Generic[T]):
    """Hedged requests: asks further sources without cancelling the earlier ones, and takes the first result."""

    def __init__(
        self, work: Callable[[Supply], Awaitable[T]], wanted: slice, timeout: float, failure: LazyfsError | None
    ) -> None:
        self._work = work
        self._wanted = wanted
        self._timeout = timeout
        self._failure = failure
        self._results: list[T] = []

    async def run(self, supplies: Sequence[Supply], *, alive: bool) -> T:
        """The first of `supplies` has been waited for once already. `alive`: it showed a sign of life."""
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
        """Wait for `supply` alone, until its time is up. Returns whether it has failed."""
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
