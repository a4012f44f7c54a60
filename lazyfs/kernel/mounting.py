"""Mounting by file descriptors: a file system is opened, told its options one by one, made, and only then given a place.

Options one by one mean that no path needs escaping and that nothing has to fit into a page; the place last means that
whatever fails before it leaves no mount: closing the descriptor is the undoing. What the kernel has to say about a
refusal is read from the context and becomes part of the OSError.

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
    """A file system that is being configured. To be closed; what `mount` gave lives on."""

    def __init__(self, kind: str) -> None:
        """Of the type `kind`. Raises OSError: ENODEV for a type that the kernel does not have, EPERM, ENOSYS."""
        self._kind = kind
        self._fd = syscall(_FSOPEN, kind.encode(), _CLOEXEC, about=f"fsopen({kind})")

    def set(self, option: str, value: str | bytes | None = None) -> None:
        """Set an option; one without a value is a flag. Raises OSError: EINVAL for what this kernel does not know."""
        if value is None:
            self._configure(_SET_FLAG, option, None)
        else:
            self._configure(_SET_STRING, option, os.fsencode(value))

    def create(self) -> None:
        """Make the file system from what was set. Blocks as long as the kernel takes. Raises OSError."""
        self._configure(_CMD_CREATE, None, None)

    def mount(self, attributes: int) -> int:
        """A descriptor of a mount that has no place yet, and goes when the descriptor is closed. Raises OSError."""
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
    """Give the mount behind a descriptor its place at the directory `at`; a symbolic link there is not followed. Raises OSError."""
    syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(at), _MOVE_MOUNT_F_EMPTY_PATH, about=f"move_mount({at})")


def reconfigure(at: Path, *, read_only: bool) -> None:
    """Have the file system mounted at `at` reconfigured without changing a thing: the kernel drops its unused dentries. Raises OSError.

    `read_only` tells what it is (the file system, not this mount of it). Blocks as long as it takes: 18 ms for 10,000 files.
    """
    fd = syscall(_FSPICK, _AT_FDCWD, os.fsencode(at), _CLOEXEC | _FSPICK_SYMLINK_NOFOLLOW, about=f"fspick({at})")
    try:
        if read_only:  # else overlayfs takes it for the wish to make it writable
            syscall(_FSCONFIG, fd, _SET_FLAG, b"ro", None, 0)
        syscall(_FSCONFIG, fd, _CMD_RECONFIGURE, None, None, 0)
    except OSError as error:
        raise _explained(error, fd, f"reconfiguring {at}") from None
    finally:
        os.close(fd)


def unmount(at: Path, *, lazy: bool = False) -> None:
    """Take the uppermost mount at `at` away; `lazy` detaches a busy one. Raises OSError: EBUSY, EINVAL for what is not a mount."""
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
