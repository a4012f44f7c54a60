"""The bytes of one range, over as many responses as it takes. If one breaks off, stalls or is cut short, the rest is requested.

The reader sees one stream and one error. A body fails when five responses in a row delivered nothing, or when there were so many
that they carry less than 4 KiB each, or at the caller's deadline, which covers new requests as well as waiting.
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
"""Seconds of waiting in which the sender must deliver FLOOR bytes, or all that is wanted. Time in which nobody reads does not
count.
"""
FLOOR: Final = 4 << 10
"""Bytes. A connection that delivers less in STALL seconds does not recover; another one may work."""
TRIES: Final = 5
"""Responses in a row that may deliver nothing."""
_SLACK: Final = 0.5
"""Seconds by which the deadline may be late, so that it is moved rarely: moving it costs more than a receive."""
_FREE: Final = 64
"""Responses for one body that may deliver any number of bytes; after these, each must deliver FLOOR bytes on average."""
_PAUSE: Final = 0.2
_SCRATCH: Final = 64 << 10


class Body:
    """A RangeStream. Its owner has to close it."""

    def __init__(
        self,
        request: RangeRequest,
        response: RangeResponse,
        ask_again: Callable[[RangeRequest], Awaitable[RangeResponse]],
        pool: Pool,
    ) -> None:
        """`ask_again` requests what is missing, and raises like Ranges.open. Connections go back to `pool`."""
        self._request = request
        self._ask_again = ask_again
        self._pool = pool
        self._position = request.start
        """Blob offset of the reader's next byte."""
        self._response: RangeResponse | None = response
        self._stream = response.stream
        self._skip = request.start - response.start
        """Bytes of the response before `_position`."""
        self._left = response.end - request.start
        """Bytes of the response from `_position` on."""
        self._time_left = STALL
        """Seconds of waiting in which the sender must deliver `_due` bytes."""
        self._due = FLOOR
        self._gained = 0
        """Bytes that this response has delivered to the reader."""
        self._fruitless = 0
        self._responses = 1
        self.received = 0
        """See RangeStream."""

    def close(self) -> None:
        """Release the connection."""
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
            with trio.move_on_after(self._time_left) as scope:
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
                    self._time_left = max(0.0, scope.deadline - trio.current_time())
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
        """The sender has delivered what was due; the next FLOOR bytes are due now."""
        self._due = FLOOR
        now = trio.current_time()
        if scope.deadline < now + STALL:
            scope.deadline = now + STALL + _SLACK

    async def _resume(self, failure: Unreachable | None, *, slow: bool) -> None:
        """Request what is missing until there is a response. `failure`: the error of the last response; None if it was only
        short.

        Raises the last failure when it is no use to continue, and what Ranges.open raises.
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
        self._time_left, self._due, self._gained = STALL, FLOOR, 0

    def _end(self, *, reusable: bool) -> None:
        response = self._response
        assert response is not None
        self._response = None
        reusable = reusable and response.keep_alive and not self._left and not self._skip
        if reusable and isinstance(response.stream, DecodedBody):
            reusable = response.stream.is_over
        self._pool.release(response.url, response.connection, reusable=reusable)
