"""A mount namespace that lives as long as one call: what is mounted in it is seen by nobody else, and gone after it."""

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
    """What `function` returns or raises, run in a thread of its own with a mount namespace of its own.

    The kernel ends the namespace, and all that was mounted in it, with its thread, SIGKILL included. Raises OSError: EPERM.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call("unshare", _CLONE_NEWNS)
            # Else what is mounted here would be mounted in the namespace that this one was copied from.
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
