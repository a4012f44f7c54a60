"""The bytes of one range, however many responses it takes: what breaks off, stalls or is cut short goes on where it stopped.

Callers see one stream and one error. A body is given up when five tries in a row brought nothing, or when it takes so many responses that
they carry under 4 KiB each; or the caller's deadline ends it, which covers asking again as it covers waiting.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from lazyfs.errors import BadAnswer, HeldOff, Unreachable
from lazyfs.registry.decoded import DecodedBody
from lazyfs.registry.pool import Pool
from lazyfs.registry.range_response import RangeRequest, RangeResponse

STALL: Final = 20.0
"""Seconds of waiting in which a sender has to bring FLOOR bytes, or all that is wanted. Time in which nobody reads does not count."""
FLOOR: Final = 4 << 10
"""Bytes. Less than this in STALL seconds is a connection that does not get well again; another one may."""
TRIES: Final = 5
"""In a row that may bring nothing."""
_SLACK: Final = 0.5
"""Seconds by which a deadline may be late, so that it is moved seldom: that costs more than a receive."""
_FREE: Final = 64
"""Answers that one body may take, however little they bring; beyond those each has to bring FLOOR bytes."""
_PAUSE: Final = 0.2
_SCRATCH: Final = 64 << 10


class Body:
    """See RangeStream. To be closed by its owner."""

    def __init__(
        self,
        request: RangeRequest,
        response: RangeResponse,
        ask_again: Callable[[RangeRequest], Awaitable[RangeResponse]],
        pool: Pool,
    ) -> None:
        """`ask_again` gets what is still missing, and raises as Ranges.open; connections go back to `pool`."""
        self._request = request
        self._ask_again = ask_again
        self._pool = pool
        self._position = request.start
        """Offset in the blob of the next byte for the reader."""
        self._response: RangeResponse | None = response
        self._stream = response.stream
        self._skip = request.start - response.start
        """Bytes of the response before that."""
        self._left = response.end - request.start
        """Bytes of the response from there on."""
        self._patience = STALL
        """Seconds of waiting in which the sender has to bring `_due` bytes."""
        self._due = FLOOR
        self._gained = 0
        """Bytes for the reader that this response has brought."""
        self._fruitless = 0
        self._responses = 1
        self.received = 0
        """See RangeStream."""

    def close(self) -> None:
        """Give back the connection."""
        if self._response is not None:
            self._end(reusable=True)

    async def receive_exactly(self, count: int) -> bytearray:
        """See RangeStream."""
        missing = self._request.end - self._position
        if count > missing:
            raise BadAnswer(f"{self._request.what}: the range ends {count - missing} bytes before what is wanted from it")
        buffer = bytearray(count)
        view = memoryview(buffer)
        done = 0
        while True:
            begun = done
            stop = min(count, done + self._left)
            failure: Unreachable | None = None
            with trio.move_on_after(self._patience) as scope:
                try:
                    if self._skip:
                        await self._skip_bytes(scope)
                    while done < stop:
                        got = await self._stream.receive_into(view[done:stop])
                        if not got:
                            raise Unreachable(
                                f"{self._request.what}: the sender broke off with {self._left - done + begun} bytes to come"
                            )
                        done += got
                        self.received += got
                        self._due -= got
                        if self._due <= 0 and done < stop:
                            self._extend_deadline(scope)
                except Unreachable as error:
                    failure = error
            slow = scope.cancelled_caught
            if slow:
                failure = Unreachable(f"{self._request.what}: under {FLOOR} bytes came in {STALL:g} s")
            self._left -= done - begun
            self._gained += done - begun
            self._position += done - begun
            if done == count:
                if self._left:  # else nobody waits for this response again
                    if self._due <= 0:
                        self._extend_deadline(scope)
                    self._patience = max(0.0, scope.deadline - trio.current_time())
                return buffer
            await self._resume(failure, slow=slow)

    async def _skip_bytes(self, scope: trio.CancelScope) -> None:
        scratch = memoryview(bytearray(min(self._skip, _SCRATCH)))
        while self._skip:
            got = await self._stream.receive_into(scratch[: self._skip])
            if not got:
                raise Unreachable(f"{self._request.what}: the sender broke off with {self._skip + self._left} bytes to come")
            self._skip -= got
            self.received += got
            self._due -= got
            if self._due <= 0:
                self._extend_deadline(scope)

    def _extend_deadline(self, scope: trio.CancelScope) -> None:
        """The sender has brought what was due: the next FLOOR bytes are."""
        self._due = FLOOR
        now = trio.current_time()
        if scope.deadline < now + STALL:
            scope.deadline = now + STALL + _SLACK

    async def _resume(self, failure: Unreachable | None, *, slow: bool) -> None:
        """Ask for what is missing until it is being answered. `failure`: why the last response has ended, None where it was short.

        Raises the last failure where going on is of no use, and what Ranges.open raises.
        """
        while True:
            if self._response is not None:
                self._end(reusable=failure is None)
            self._fruitless = 0 if self._gained >= (FLOOR if slow else 1) else self._fruitless + 1
            self._responses += 1
            too_many = self._responses > _FREE + (self._position - self._request.start) // FLOOR
            if failure is not None and (too_many or self._fruitless >= TRIES):
                raise failure
            if too_many:
                raise BadAnswer(f"{self._request.what}: its server answers with pieces of under {FLOOR} bytes")
            if self._fruitless and not slow:
                await trio.sleep(_PAUSE * 2 ** (self._fruitless - 1) * random.uniform(1.0, 1.5))
            try:
                response = await self._ask_again(self._request._replace(start=self._position))
            except HeldOff:
                raise
            except Unreachable as error:
                failure, slow, self._gained = error, False, 0
            else:
                self._begin(response)
                return

    def _begin(self, response: RangeResponse) -> None:
        self._response = response
        self._stream = response.stream
        self._skip = self._position - response.start
        self._left = response.end - self._position
        self._patience, self._due, self._gained = STALL, FLOOR, 0

    def _end(self, *, reusable: bool) -> None:
        response = self._response
        assert response is not None
        self._response = None
        reusable = reusable and response.keep_alive and not self._left and not self._skip
        if reusable and isinstance(response.stream, DecodedBody):
            reusable = response.stream.is_over
        self._pool.release(response.url, response.connection, reusable=reusable)
