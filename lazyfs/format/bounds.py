"""The limits on what one layer may cost, in memory, zeros and steps. A small blob can describe something large.

Every bound grows with the bytes that actually arrived (`arrived`: a tar's blob, a TOC's compressed member), never with a size that the
layer or its manifest claims:

    description    names, link targets, attributes, and 512 bytes an entry    <= 64 MiB + 32 x arrived
    zeros          what the holes of sparse files become, in sum              <= max(256 MiB, 1000 x arrived), at most 64 GiB
    steps          path components and symbolic links followed       <= 10,000,000

The description is bounded for all layers of an image together as well, because all are in memory while it is mounted: 64 MiB for the
image, and 32 times what arrived of each layer (ImageBounds).

Real layers stay far below: the largest one measured, with 33,247 entries, has a description of 22 MB. Whatever grows with the
number of entries is charged at about its real cost, so the description bounds memory as well.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

from lazyfs.errors import InvalidInput

DESCRIPTION: Final = 64 << 20
DESCRIPTION_RATIO: Final = 32
ENTRY: Final = 512
"""Counted for each entry of a TOC, chunks included, and each header of a tar."""
ATTRIBUTE: Final = 128
"""Counted for each extended attribute, beside its name and value."""
RECORD: Final = 32
"""Counted for each record of an extended header, beside its bytes."""
EXTENT: Final = 192
"""Counted for each piece of a sparse file."""
ZEROS: Final = 256 << 20
ZEROS_RATIO: Final = 1000
MAX_ZEROS: Final = 64 << 30
MAX_STEPS: Final = 10_000_000
LOOK_EVERY: Final = 1000


def never() -> None:
    """The `check_cancelled` of callers that are never cancelled."""


class ImageBounds:
    """The account of an image: what its layers have described so far. Thread-safe.

    A layer counts when it has been parsed, so layers that are parsed at the same time do not see each other until then. The last of
    them is refused when it is counted; the memory that they use until then is bounded by the process's parsing budget (format/budget.py).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived = 0
        self._described = 0

    def limit(self, arrived: int) -> int:
        """Bytes that the next layer may describe, if `arrived` bytes of it came."""
        with self._lock:
            return DESCRIPTION + DESCRIPTION_RATIO * (self._arrived + arrived) - self._described

    def add(self, arrived: int, described: int, *, enforced: bool) -> bool:
        """Count a layer. Returns False without counting it when the image would exceed its bound and the bound is `enforced`."""
        with self._lock:
            if enforced and self._described + described > DESCRIPTION + DESCRIPTION_RATIO * (self._arrived + arrived):
                return False
            self._arrived += arrived
            self._described += described
            return True


class Bounds:
    """The account of one layer, charged before the memory or time is spent."""

    def __init__(
        self,
        arrived: int,
        what: str,
        error: type[InvalidInput] = InvalidInput,
        check_cancelled: Callable[[], None] = never,
        *,
        enforced: bool = True,
        image: ImageBounds | None = None,
    ) -> None:
        """`arrived` is a count of bytes; `what` names the layer in errors, which are of the class `error`. `image` is the account of
        the layer's image, to which `settle` adds it.

        Without `enforced` nothing is refused: for layers that were accepted before. `check_cancelled` is called every 1,000
        steps and raises when the work should stop (trio.from_thread.check_cancelled).
        """
        self.arrived = arrived
        self._what = what
        self._error = error
        self._check_cancelled = check_cancelled
        self.limit = DESCRIPTION + DESCRIPTION_RATIO * arrived if enforced else sys.maxsize
        """The most bytes that the description may have."""
        self._image = image
        self._is_enforced = enforced
        self._is_crowded = False
        """Whether the image's other layers leave this one less than its own bound."""
        if image is not None and enforced and (left := image.limit(arrived)) < self.limit:
            self.limit = left
            self._is_crowded = True
        self.described = 0
        """Bytes of description so far."""
        self._zeros = 0
        self._max_zeros = min(max(ZEROS, ZEROS_RATIO * arrived), MAX_ZEROS) if enforced else sys.maxsize
        self._max_steps = MAX_STEPS if enforced else sys.maxsize
        self._steps = 0
        self._next_look = LOOK_EVERY

    def describe(self, size: int, steps: int = 1) -> None:
        """Count `size` bytes of description, and `steps`."""
        self.described += size
        if self.described > self.limit:
            raise self.too_large()
        self.step(steps)

    def has_room(self, size: int) -> bool:
        """Whether the description may grow by `size` bytes."""
        return self.described + size <= self.limit

    def step(self, count: int = 1) -> None:
        """Count steps through names and links."""
        self._steps += count
        if self._steps >= self._next_look:
            if self._steps > self._max_steps:
                raise self._error(f"{self._what}: its names and links take more than {MAX_STEPS} steps to follow")
            self._next_look = self._steps + LOOK_EVERY
            self._check_cancelled()

    def fill(self, zeros: int, file: str, size: int) -> None:
        """Count the `zeros` that fill up the holes of a file of `size` bytes. `file` names it and the layer in the error."""
        self._zeros += zeros
        if self._zeros > self._max_zeros:
            raise self._error(
                f"{file} has holes and would become {size} bytes: its layer's sparse files may be filled up with {self._max_zeros}"
                f" bytes of zeros together, which is the limit for a layer of {self.arrived} bytes"
            )

    def settle(self) -> None:
        """Add the parsed layer to its image's account. Raises the error if layers parsed in the meantime leave too little for it."""
        if self._image is not None and not self._image.add(self.arrived, self.described, enforced=self._is_enforced):
            self._is_crowded = True
            self.limit = self._image.limit(self.arrived)
            raise self.too_large()

    def too_large(self) -> InvalidInput:
        """The error for a description that is too large."""
        others = ", in addition to the image's other layers" if self._is_crowded else ""
        return self._error(
            f"{self._what}: its names, links and attributes, with {ENTRY} bytes for each entry, take more than {max(self.limit, 0)}"
            f" bytes, which is the limit for {self.arrived} bytes of input{others}"
        )


UNBOUNDED: Final = Bounds(0, "", enforced=False)
"""For parsing that belongs to no layer."""
