"""C library calls that Python does not offer. ctypes releases the GIL during a call, so a thread may block in it."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(function: str, *arguments: int | bytes | None, about: str = "") -> int:
    """Call libc's `function`. Raises OSError with its errno, naming `about`, when it returns a negative number."""
    return _checked(getattr(_libc, function)(*map(_passed, arguments)), about)


def syscall(number: int, *arguments: int | bytes | None, about: str = "") -> int:
    """Make a system call that the C library may not offer. Raises OSError; ENOSYS if the kernel does not have it."""
    return _checked(_libc.syscall(ctypes.c_long(number), *map(_passed, arguments)), about)


def _passed(argument: int | bytes | None) -> ctypes.c_long | ctypes.c_char_p:
    # Converted explicitly: ctypes would pass an int as 32 bits and leave the rest of the register undefined.
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)


def _checked(result: int, about: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about or None)
    return result
