"""The hierarchy of errors, and what each becomes outside: an errno in a mount, an exit code on the command line.

    LazyfsError                 exit 1, EIO
    ├── UsageError              exit 2: the command line
    ├── InvalidInput            exit 3: bytes that are not what they claim to be (never retried)
    │   ├── DigestMismatch
    │   ├── InvalidToc · InvalidTar · InvalidManifest
    │   └── NotLazy             a layer without a TOC, or with a TOC that no annotation names
    ├── SourceError             exit 4: a registry or layout did not deliver what was asked for (may be temporary)
    │   ├── NotFound · Unauthorized · BadAnswer
    │   ├── Unreachable
    │   │   └── HeldOff         the host asked for a pause that ends too late
    │   └── RangeIgnored        the server does not serve ranges of this blob, only all of it
    ├── LocalError              exit 5: this machine
    │   ├── StoreFull           ENOSPC
    │   ├── StoreUnusable
    │   ├── NotInstalled        a library of an optional extra
    │   ├── ContainerdFailed    containerd is not running, or refuses
    │   └── MountFailed
    │       └── NotNative       this machine cannot mount natively; a portable mount may work
    └── SnapshotError           a request of containerd for a snapshot is invalid: a gRPC status
        ├── SnapshotExists      EEXIST
        ├── SnapshotNotFound    ENOENT
        ├── SnapshotBusy        EBUSY: it has children, or is of another kind
        └── BadSnapshot         EINVAL: an invalid key, parent, label or filter

Every message says what happened, to what, and (`hint`) what to do about it.

Messages quote text that others wrote: names in a tar, a field of a manifest, a registry's answer. `show` quotes one bounded
line of it. LazyfsError itself shortens and escapes what a message forgets to quote: a message is one line of at most
MAX_MESSAGE characters, whatever the input was.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar, Final, TypeVar

__all__ = [
    "BadAnswer",
    "BadSnapshot",
    "ContainerdFailed",
    "DigestMismatch",
    "HeldOff",
    "InvalidInput",
    "InvalidManifest",
    "InvalidTar",
    "InvalidToc",
    "LazyfsError",
    "LocalError",
    "MountFailed",
    "NotFound",
    "NotInstalled",
    "NotLazy",
    "NotNative",
    "RangeIgnored",
    "SnapshotBusy",
    "SnapshotError",
    "SnapshotExists",
    "SnapshotNotFound",
    "SourceError",
    "StoreFull",
    "StoreUnusable",
    "Unauthorized",
    "Unreachable",
    "UsageError",
    "most_severe",
    "not_installed",
    "require",
    "show",
    "without_traceback",
]

MAX_MESSAGE: Final = 1024
"""Maximum characters of a message, and of a hint."""
_MAX_QUOTED: Final = 200


_EXTRAS: Final = {
    "pyfuse3": "mount",
    "setproctitle": "mount",
    "grpc": "containerd",
    "google": "containerd",
    "prometheus_client": "containerd",
}
"""The extra of this distribution that installs a library (pyproject.toml)."""


_Error = TypeVar("_Error", bound=BaseException)


class LazyfsError(Exception):
    """`message` says what happened and to what; `hint`, a separate sentence, says what to do."""

    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = _line(message)
        self.hint = _line(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def reworded(self, message: str, hint: str) -> LazyfsError:
        """An error of the same kind with another text."""
        return type(self)(message, hint=hint)


class UsageError(LazyfsError):
    """The command line is wrong: unknown names, options that exclude each other."""

    errno = _errno.EINVAL
    exit_code = 2


class InvalidInput(LazyfsError):
    """Hostile or broken bytes. A retry would return the same bytes."""

    exit_code = 3


class DigestMismatch(InvalidInput):
    """Bytes do not hash to the expected digest."""


class InvalidToc(InvalidInput):
    """A layer's TOC (or its footer) violates the format of its dialect."""


class InvalidTar(InvalidInput):
    """A layer is not a tar, or one that runtimes would not unpack alike."""


class InvalidManifest(InvalidInput):
    """An index, manifest or config that does not describe an image of a known kind."""


class NotLazy(InvalidInput):
    """The layer is an ordinary one, or no annotation names its TOC: it cannot be mounted lazily."""


class SourceError(LazyfsError):
    """The source did not deliver the bytes. A retry may succeed."""

    exit_code = 4


class NotFound(SourceError):
    """The registry or layout answers, but does not have the image, blob or document."""


class Unauthorized(SourceError):
    """Credentials are missing, wrong, or insufficient."""


class Unreachable(SourceError):
    """No connection, no response before the deadline, or a broken connection."""


class HeldOff(Unreachable):
    """A host answered 429 or 503 with Retry-After, and the caller's deadline ends before that time."""

    def __init__(self, message: str, until: float, *, hint: str = "") -> None:
        """`until`: when the host may be asked again, on trio's clock."""
        super().__init__(message, hint=hint)
        self.until = until

    def reworded(self, message: str, hint: str) -> HeldOff:
        return HeldOff(message, self.until, hint=hint)


class BadAnswer(SourceError):
    """A response that HTTP or the distribution specification does not allow here."""


class RangeIgnored(SourceError):
    """The server does not serve ranges of this blob: it answers with all of it (200), or refuses ranges but serves the whole.

    Raised for ranges that begin too far in to skip to. A range near the start of the blob is read from the whole blob.
    """


class LocalError(LazyfsError):
    """This machine failed: disk, permissions, kernel."""

    exit_code = 5


class StoreFull(LocalError):
    """No room in the store. Reads continue without storing."""

    errno = _errno.ENOSPC


class StoreUnusable(LocalError):
    """The store cannot be opened: permissions, a newer format, no directory."""


class NotInstalled(LocalError):
    """A library is missing that a plain `pip install` of this distribution does not install."""


class ContainerdFailed(LocalError):
    """containerd cannot be reached, or refuses a request."""

    def __init__(self, message: str, *, hint: str = "", status: str = "") -> None:
        """`status` is a gRPC status such as `UNAVAILABLE`; empty if containerd was not reached."""
        super().__init__(message, hint=hint)
        self.status = status


class MountFailed(LocalError):
    """The kernel or fusermount3 refused to mount or unmount."""


class NotNative(MountFailed):
    """No EROFS, no data-only layers in overlayfs, or not root. A portable mount may work."""


class SnapshotError(LazyfsError):
    """A request for a snapshot violates containerd's rules. Nothing was changed."""


class SnapshotExists(SnapshotError):
    """A snapshot of that name exists (gRPC: ALREADY_EXISTS)."""

    errno = _errno.EEXIST


class SnapshotNotFound(SnapshotError):
    """There is no snapshot, or no parent, of that name (NOT_FOUND)."""

    errno = _errno.ENOENT


class SnapshotBusy(SnapshotError):
    """The snapshot is in the wrong state: it has children, or is of another kind (FAILED_PRECONDITION)."""

    errno = _errno.EBUSY


class BadSnapshot(SnapshotError):
    """An invalid key, parent, label or filter (INVALID_ARGUMENT)."""

    errno = _errno.EINVAL


def require(what: str, *modules: str) -> None:
    """Raise NotInstalled unless `modules`, which `what` needs, can be imported. To be called before any work begins."""
    from importlib.util import find_spec

    for module in modules:
        try:
            found = find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise _missing(what, module)


def not_installed(error: BaseException) -> NotInstalled | None:
    """The error to report for a failed import; None for any other error, or if no extra installs the module."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    return _missing("this", name) if name.partition(".")[0] in _EXTRAS else None


def _missing(what: str, module: str) -> NotInstalled:
    extra = _EXTRAS[module.partition(".")[0]]
    return NotInstalled(f"{what} needs {module}, which is not installed", hint=f"pip install 'lazyfs[{extra}]' installs it")


def without_traceback(error: _Error) -> _Error:
    """`error` without its traceback. The frames hold what was being parsed, and they would live as long as the error."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def most_severe(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a group to report: an interrupt before a defect, a defect before a LazyfsError."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending += reversed(error.exceptions)
        else:
            leaves.append(error)
    leaves.sort(key=lambda error: (not isinstance(error, KeyboardInterrupt), isinstance(error, LazyfsError)))
    return leaves[0]


def show(value: object, limit: int = _MAX_QUOTED) -> str:
    """Foreign text, or another value of foreign JSON, for a message: quoted, printable, one line of at most `limit` characters.

    The cost does not depend on the size of the value, only on the part that is shown.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) > 8 * limit:
            value = bytes(value[: 4 * limit]) + bytes(value[-4 * limit :])  # the middle would not be shown
        value = bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        if len(value) > 2 * limit:
            value = value[:limit] + value[-limit:]
        return _shortened(repr(value), limit)
    if isinstance(value, dict):
        return "a JSON object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 512:
        return f"a number of {value.bit_length()} bits"
    return _shortened(repr(value), limit)


def _line(text: str) -> str:
    """`text` as one line of at most MAX_MESSAGE characters, with unprintable characters escaped."""
    if len(text) > 2 * MAX_MESSAGE:
        text = text[:MAX_MESSAGE] + text[-MAX_MESSAGE:]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escaped(char) for char in text)
    return _shortened(text, MAX_MESSAGE)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = limit // 5
    return text[: limit - tail - 1] + "…" + text[-tail:]
