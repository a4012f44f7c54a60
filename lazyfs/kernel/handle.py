"""File handles: the identity of a file, which outlives its names and shows when the file itself is gone.

A file that was unlinked keeps its space for as long as somebody has it open, or an overlay's inode refers to it. Opening it by its
handle succeeds until then; once the file is gone, or its inode number belongs to another file, the result is ESTALE.

Source: name_to_handle_at(2), open_by_handle_at(2), which needs CAP_DAC_READ_SEARCH.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from lazyfs.kernel.libc import call

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_HEAD: Final = struct.Struct("=Ii")  # struct file_handle: bytes that follow, type
_MAX_HANDLE: Final = 128


def handle_of(file: str | int) -> bytes:
    """The handle of the file at a path, or of an open one. Raises OSError: EOPNOTSUPP if the file system has no handles."""
    folder, path, flags = (_AT_FDCWD, file, 0) if isinstance(file, str) else (file, "", _AT_EMPTY_PATH)
    handle = ctypes.create_string_buffer(_HEAD.pack(_MAX_HANDLE, 0), _HEAD.size + _MAX_HANDLE)
    mount = ctypes.c_int()
    address = ctypes.addressof(handle)
    call("name_to_handle_at", folder, os.fsencode(path), address, ctypes.addressof(mount), flags, about=path)
    size, _ = _HEAD.unpack_from(handle.raw)
    return handle.raw[: _HEAD.size + size]


def is_there(folder: int, handle: bytes) -> bool:
    """Whether the file still takes space on the file system of the descriptor `folder`. Raises OSError."""
    try:
        os.close(call("open_by_handle_at", folder, handle, os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ESTALE:
            return False
        raise
    return True
