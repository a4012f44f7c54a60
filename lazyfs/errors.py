"""The one hierarchy of errors, and what each becomes outside: an errno inside a mount, an exit code on the command line.

    LazyfsError                 exit 1, EIO
    ├── UsageError              exit 2: the command line itself
    ├── InvalidInput            exit 3: bytes that are not what they claim to be (never retried)
    │   ├── DigestMismatch
    │   ├── InvalidToc · InvalidTar · InvalidManifest
    │   └── NotLazy             a layer that nothing vouches for, or that has no TOC
    ├── SourceError             exit 4: a registry or a layout did not give what was asked (may pass)
    │   ├── NotFound · Unauthorized · BadAnswer
    │   ├── Unreachable
    │   │   └── HeldOff         the host asked not to be asked before a time that comes too late
    │   └── RangeIgnored        the server does not serve ranges of this blob, only all of it
    ├── LocalError              exit 5: this machine
    │   ├── StoreFull           ENOSPC
    │   ├── StoreUnusable
    │   ├── NotInstalled        a library that an extra of this distribution brings
    │   ├── ContainerdFailed    containerd is not there, or refuses
    │   └── MountFailed
    │       └── NotNative       this machine cannot mount natively; portably it may
    └── SnapshotError           what containerd asks of a snapshot cannot be: a status of gRPC
        ├── SnapshotExists      EEXIST
        ├── SnapshotNotFound    ENOENT
        ├── SnapshotBusy        EBUSY: it has children, or is of another kind
        └── BadSnapshot         EINVAL: a key, a parent, a label or a filter that is none

Every message says what happened, to what, and (`hint`) what to do about it.

Messages quote text that others wrote: names in a tar, a field of a manifest, a registry's answer. `show` quotes one bounded
line of it. What a message forgets to quote so, LazyfsError itself shortens and escapes: a message is one line of at most
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
"""Characters of a message, and of a hint."""
_MAX_QUOTED: Final = 200


_EXTRAS: Final = {
    "pyfuse3": "mount",
    "setproctitle": "mount",
    "grpc": "containerd",
    "google": "containerd",
    "prometheus_client": "containerd",
}
"""Which extra of this distribution brings a library (pyproject.toml)."""


_Error = TypeVar("_Error", bound=BaseException)


class LazyfsError(Exception):
    """`message` names what happened and to what; `hint`, a sentence of its own, says what to do."""

    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = _line(message)
        self.hint = _line(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def reworded(self, message: str, hint: str) -> LazyfsError:
        """An error of the same kind in other words."""
        return type(self)(message, hint=hint)


class UsageError(LazyfsError):
    """The command line asks for what cannot be: unknown names, options that exclude each other."""

    errno = _errno.EINVAL
    exit_code = 2


class InvalidInput(LazyfsError):
    """Hostile or broken bytes. Asking again would bring the same bytes."""

    exit_code = 3


class DigestMismatch(InvalidInput):
    """Bytes do not hash to the digest under which they were asked for."""


class InvalidToc(InvalidInput):
    """A layer's TOC (or its footer) breaks the eStargz format."""


class InvalidTar(InvalidInput):
    """A layer is not a tar, or one that no runtime would unpack alike."""


class InvalidManifest(InvalidInput):
    """An index, manifest or config that is not an image of a kind we know."""


class NotLazy(InvalidInput):
    """The layer is an ordinary one, or its TOC is vouched for by nothing: it cannot be mounted lazily."""


class SourceError(LazyfsError):
    """Whoever holds the bytes did not give them. Another try may succeed."""

    exit_code = 4


class NotFound(SourceError):
    """The registry or layout answers, and has no such image, blob or document."""


class Unauthorized(SourceError):
    """Credentials are missing, wrong, or not enough for what was asked."""


class Unreachable(SourceError):
    """No connection, no answer before the deadline, or a connection that broke off."""


class HeldOff(Unreachable):
    """A host answered 429 or 503 with Retry-After, and the caller's deadline ends before it may be asked again."""

    def __init__(self, message: str, until: float, *, hint: str = "") -> None:
        """`until`: when the host may be asked again, on trio's clock."""
        super().__init__(message, hint=hint)
        self.until = until

    def reworded(self, message: str, hint: str) -> HeldOff:
        return HeldOff(message, self.until, hint=hint)


class BadAnswer(SourceError):
    """An answer that HTTP or the distribution specification does not allow here."""


class RangeIgnored(SourceError):
    """The server does not serve ranges of this blob: it answers them with all of it (200), or refuses them and serves the whole.

    Raised for ranges that begin too far in to skip to them; what begins near the start of the blob is read from the whole.
    """


class LocalError(LazyfsError):
    """This machine refuses: disk, permissions, kernel."""

    exit_code = 5


class StoreFull(LocalError):
    """No room in the store. Reads go on without keeping."""

    errno = _errno.ENOSPC


class StoreUnusable(LocalError):
    """The store cannot be opened: permissions, a newer format, no directory."""


class NotInstalled(LocalError):
    """What was asked for needs a library that a plain `pip install` of this distribution does not bring."""


class ContainerdFailed(LocalError):
    """containerd cannot be reached, or says no to what a client asks of it."""

    def __init__(self, message: str, *, hint: str = "", status: str = "") -> None:
        """`status` is gRPC's, `UNAVAILABLE` and the like; empty where containerd was not even asked."""
        super().__init__(message, hint=hint)
        self.status = status


class MountFailed(LocalError):
    """The kernel or fusermount3 refused to mount or unmount."""


class NotNative(MountFailed):
    """No EROFS, no data-only layers in overlayfs, no root: a portable mount may do."""


class SnapshotError(LazyfsError):
    """What was asked of a snapshot is against containerd's rules. Nothing was changed."""


class SnapshotExists(SnapshotError):
    """There is a snapshot of that name (gRPC: ALREADY_EXISTS)."""

    errno = _errno.EEXIST


class SnapshotNotFound(SnapshotError):
    """There is no snapshot of that name, or no such parent (NOT_FOUND)."""

    errno = _errno.ENOENT


class SnapshotBusy(SnapshotError):
    """The snapshot is in no state for that: it has children, or is of another kind (FAILED_PRECONDITION)."""

    errno = _errno.EBUSY


class BadSnapshot(SnapshotError):
    """What was said of a snapshot can be true of none: its key, parent, labels, or a filter (INVALID_ARGUMENT)."""

    errno = _errno.EINVAL


def require(what: str, *modules: str) -> None:
    """Raises NotInstalled unless `modules` can be imported, which `what` needs: to be called before anything is begun."""
    from importlib.util import find_spec

    for module in modules:
        try:
            found = find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise _missing(what, module)


def not_installed(error: BaseException) -> NotInstalled | None:
    """What to tell of a failed import; None of any other error, and where the module is none that an extra brings."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    return _missing("this", name) if name.partition(".")[0] in _EXTRAS else None


def _missing(what: str, module: str) -> NotInstalled:
    extra = _EXTRAS[module.partition(".")[0]]
    return NotInstalled(f"{what} needs {module}, which is not installed", hint=f"pip install 'lazyfs[{extra}]' installs it")


def without_traceback(error: _Error) -> _Error:
    """`error` without the frames that it came through. They hold what was being parsed, and whoever keeps the error keeps that."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def most_severe(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell of several errors at once: an interrupt before a bug, a bug before an error of ours."""
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
    """Foreign text, or any other value of foreign JSON, for a message: quoted, printable, one line of at most `limit` characters.

    Costs no more than the part that is shown, however large the value is.
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
    """`text` as one line of at most MAX_MESSAGE characters, what is not printable escaped."""
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
