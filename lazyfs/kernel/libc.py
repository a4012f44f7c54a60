"""The C library's calls that Python has no name for. ctypes lets go of the GIL while one runs, so a thread may wait in it."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(function: str, *arguments: int | bytes | None, about: str = "") -> int:
    """libc's `function`. Raises OSError, of the errno that it left and about what is told, when it answers below 0."""
    return _checked(getattr(_libc, function)(*map(_passed, arguments)), about)


def syscall(number: int, *arguments: int | bytes | None, about: str = "") -> int:
    """A system call that the C library may be too old to name. Raises OSError; ENOSYS where the kernel has none of that number."""
    return _checked(_libc.syscall(ctypes.c_long(number), *map(_passed, arguments)), about)


def _passed(argument: int | bytes | None) -> ctypes.c_long | ctypes.c_char_p:
    # Told explicitly: ctypes would pass an int as 32 bits, and the rest of the register would be anything.
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)


def _checked(result: int, about: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about or None)
    return result
