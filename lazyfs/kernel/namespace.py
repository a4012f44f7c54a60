"""A mount namespace for the duration of one call: its mounts are private, and gone afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from lazyfs.kernel.libc import call

_CLONE_NEWNS: Final = 0x00020000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18

T = TypeVar("T")


def in_own_namespace(function: Callable[[], T]) -> T:
    """Run `function` in a new thread with its own mount namespace; returns or raises what it does.

    The kernel ends the namespace, and all that was mounted in it, with its thread, SIGKILL included. Raises OSError: EPERM.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call("unshare", _CLONE_NEWNS)
            # Else mounts made here would propagate to the namespace that this one was copied from.
            call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="own mount namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
