"""Loop devices: a file as a block device, for kernels and file systems that cannot mount the file itself.

Read-only and with autoclear: the device releases its file when its last user closes it. A mount or a
descriptor keeps it; it goes with them, however the process ends.

Source: loop(4), linux/loop.h (struct loop_config; LOOP_CONFIGURE since Linux 5.8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_CONTROL: Final = "/dev/loop-control"
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_READ_ONLY_AUTOCLEAR: Final = 1 | 4

_LOOP_CONFIG: Final = struct.Struct("=II QQQQQ IIII 64s64s32s QQ 64x")
"""fd, block size; loop_info64: device, inode, rdevice, offset, size limit, number, encryption (2), flags, names, key, init."""

_TRIES: Final = 100
"""Another process may take the free device first, but not this often in a row."""


@contextmanager
def loop_device(file: int, name: bytes) -> Iterator[str]:
    """The path of a loop device over the file behind a descriptor, for the duration of the block, and of its mounts after that.

    `name` is what `losetup` will show. Raises OSError: ENOENT if there are no loop devices.
    """
    device, path = _configured(file, name)
    try:
        yield path
    finally:
        os.close(device)


def _configured(file: int, name: bytes) -> tuple[int, str]:
    config = _LOOP_CONFIG.pack(file, 0, 0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY_AUTOCLEAR, name[:63], b"", b"", 0, 0)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except BaseException as error:
                os.close(device)
                if isinstance(error, OSError) and error.errno == errno.EBUSY:
                    continue
                raise
            return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "other processes took every free loop device", _CONTROL)
