"""Importing quickly: the time to start is part of the time to mount, and to pull."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that make many objects, all of which stay to the end: nobody looks through them for garbage, now or then.

    A fifth of what `lazyfs pull` spends on modules goes into that.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
