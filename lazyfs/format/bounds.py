"""What one layer may cost, in memory, in zeros and in steps. A layer is small when it arrives; what it describes need not be.

Every bound grows with the bytes that really came (`arrived`: a tar's blob, a TOC's compressed member), never with a size that the
layer or its manifest claims:

    description    names, link targets, attributes, and 512 bytes an entry    <= 64 MiB + 32 x arrived
    zeros          what the holes of sparse files become, in sum              <= max(256 MiB, 1000 x arrived), at most 64 GiB
    steps          path components and symbolic links that are followed       <= 10,000,000

The description is bounded for all layers of an image together as well, because all are in memory while it is mounted: 64 MiB for the
image, and 32 times what arrived of each layer (ImageBounds).

Real layers stay far below: the largest measured, 33,247 entries, has a description of 22 MB. Everything that grows with the number
of entries costs about what is counted for it, so that the description bounds memory as well.
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
    """For callers that nobody cancels."""


class ImageBounds:
    """What the layers of one image have described so far. Any thread may call it.

    A layer counts when it has been parsed, so layers that are parsed at the same time do not see each other until then. The last of
    them is refused when it is counted; what they take meanwhile is bounded by the room for parsing in one process (format/budget.py).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived = 0
        self._described = 0

    def limit(self, arrived: int) -> int:
        """Bytes that the next layer, of which `arrived` bytes came, may describe."""
        with self._lock:
            return DESCRIPTION + DESCRIPTION_RATIO * (self._arrived + arrived) - self._described

    def add(self, arrived: int, described: int, *, enforced: bool) -> bool:
        """Count a layer. False, and it is not counted, where it is too much beside the others and the bound is `enforced`."""
        with self._lock:
            if enforced and self._described + described > DESCRIPTION + DESCRIPTION_RATIO * (self._arrived + arrived):
                return False
            self._arrived += arrived
            self._described += described
            return True


class Bounds:
    """The account of one layer. It is charged before the memory or the time is spent."""

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

        Not `enforced`, nothing is refused: for what was accepted before. `check_cancelled` is called every 1,000
        steps, and raises where the work should end (trio.from_thread.check_cancelled).
        """
        self.arrived = arrived
        self._what = what
        self._error = error
        self._check_cancelled = check_cancelled
        self.limit = DESCRIPTION + DESCRIPTION_RATIO * arrived if enforced else sys.maxsize
        """Bytes that the description may have."""
        self._image = image
        self._is_enforced = enforced
        self._is_crowded = False
        """Whether the other layers of the image leave it less than it may have alone."""
        if image is not None and enforced and (left := image.limit(arrived)) < self.limit:
            self.limit = left
            self._is_crowded = True
        self.described = 0
        """Bytes that it has so far."""
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
        """Whether the description may have `size` bytes more."""
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
        """Count the `zeros` that `file`, which names itself and the layer, is filled up with to its `size`."""
        self._zeros += zeros
        if self._zeros > self._max_zeros:
            raise self._error(
                f"{file} has holes and would become {size} bytes: its layer's sparse files may be filled up with {self._max_zeros}"
                f" bytes of zeros together, which is the limit for a layer of {self.arrived} bytes"
            )

    def settle(self) -> None:
        """The layer is parsed: count it for its image. Raises the error where layers that were parsed meanwhile leave it too little."""
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
"""The account of what is not a layer's."""
