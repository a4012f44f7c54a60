"""The new mount API: a file system is opened, configured option by option, created, and only then attached to a path.

With one call per option no path needs escaping and nothing has to fit into a page. Attaching comes last, so a failure before it
leaves no mount: closing the descriptor undoes everything. The kernel's explanation of a failure is read from the context and
becomes part of the OSError.

Source: fsopen(2), fsconfig(2), fsmount(2), fspick(2), move_mount(2), umount2(2). Kernel >= 5.2; the numbers of the system
calls are the same on every architecture, and named here because glibc has these calls only from 2.36 on.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lazyfs.kernel.libc import call, syscall

_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSPICK: Final = 433

_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_CMD_CREATE: Final = 6
_CMD_RECONFIGURE: Final = 7
_CLOEXEC: Final = 1
_FSPICK_SYMLINK_NOFOLLOW: Final = 2
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

READ_ONLY: Final = 1
NO_SUID: Final = 2
NO_DEVICES: Final = 4
NO_EXEC: Final = 8
"""MOUNT_ATTR_*, attributes of one mount of a file system."""

MAX_STRING: Final = 255
"""Bytes that fsconfig takes as the value of one option."""


class Context:
    """A file system that is being configured. Must be closed; mounts made from it live on."""

    def __init__(self, kind: str) -> None:
        """`kind` is the type of file system. Raises OSError: ENODEV if the kernel does not have it, EPERM, ENOSYS."""
        self._kind = kind
        self._fd = syscall(_FSOPEN, kind.encode(), _CLOEXEC, about=f"fsopen({kind})")

    def set(self, option: str, value: str | bytes | None = None) -> None:
        """Set an option; one without a value is a flag. Raises OSError: EINVAL if this kernel does not know it."""
        if value is None:
            self._configure(_SET_FLAG, option, None)
        else:
            self._configure(_SET_STRING, option, os.fsencode(value))

    def create(self) -> None:
        """Create the file system with the options that were set. Blocks as long as the kernel takes. Raises OSError."""
        self._configure(_CMD_CREATE, None, None)

    def mount(self, attributes: int) -> int:
        """A descriptor of a detached mount, which goes when the descriptor is closed. Raises OSError."""
        return syscall(_FSMOUNT, self._fd, _CLOEXEC, attributes, about=f"fsmount({self._kind})")

    def _configure(self, command: int, option: str | None, value: bytes | None) -> None:
        try:
            syscall(_FSCONFIG, self._fd, command, None if option is None else option.encode(), value, 0)
        except OSError as error:
            setting = "" if option is None else f" {option}" if value is None else f" {option}={os.fsdecode(value)}"
            raise _explained(error, self._fd, self._kind + setting) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)


def attach(mount: int, at: Path) -> None:
    """Attach the mount behind a descriptor to the directory `at`, without following a symbolic link there. Raises OSError."""
    syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(at), _MOVE_MOUNT_F_EMPTY_PATH, about=f"move_mount({at})")


def reconfigure(at: Path, *, read_only: bool) -> None:
    """Reconfigure the file system mounted at `at` without changes, which makes the kernel drop its unused dentries. Raises OSError.

    `read_only` is its present state (of the file system, not of this mount). Blocks as long as it takes: 18 ms for 10,000 files.
    """
    fd = syscall(_FSPICK, _AT_FDCWD, os.fsencode(at), _CLOEXEC | _FSPICK_SYMLINK_NOFOLLOW, about=f"fspick({at})")
    try:
        if read_only:  # else overlayfs would make it writable
            syscall(_FSCONFIG, fd, _SET_FLAG, b"ro", None, 0)
        syscall(_FSCONFIG, fd, _CMD_RECONFIGURE, None, None, 0)
    except OSError as error:
        raise _explained(error, fd, f"reconfiguring {at}") from None
    finally:
        os.close(fd)


def unmount(at: Path, *, lazy: bool = False) -> None:
    """Unmount the topmost mount at `at`; `lazy` detaches a busy one. Raises OSError: EBUSY, or EINVAL if it is not a mount."""
    call("umount2", os.fsencode(at), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0), about=f"umount({at})")


def _explained(error: OSError, fd: int, what: str) -> OSError:
    """`error` with what the kernel wrote into the context's log: lines that begin with `e `, `w ` or `i `."""
    said = []
    while True:
        try:
            said.append(os.read(fd, 4096).decode("utf-8", "replace").strip()[2:])
        except OSError:
            break
    return OSError(error.errno, ": ".join([error.strerror or "", *said]), what)
