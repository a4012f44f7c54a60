"""The FUSE connection of a store: created, or taken over from a process that died.

The connection lives as long as a process holds its descriptor, so one that survives lazyfsd holds it: an FdStore (lazyfsd's keeper,
or systemd). The next lazyfsd gets it from there and continues: the kernel resends unanswered requests, and programs notice nothing.
That works because file handles and inodes mean the same in every process.

What a start may find, and what it does:

- no connection: anything still mounted at STORE/gate is dead; it is detached, and a new connection is mounted;
- a connection whose FUSE_INIT is unanswered (a process died just then): it is answered now;
- a connection and the record of its FUSE_INIT (init_record.py): taken over. If this libfuse would reply differently, nothing
  can be served: an error, and the connection is left for a libfuse that fits;
- a connection without its record: it can never be served. It is aborted, which fails its waiting callers;
- a connection that has ended: as if there were none.

The record is durable before the kernel gets the reply, and removed before a new connection is made: a record with the
connection's number is right.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import pyfuse3
import trio

from lazyfs.errors import MountFailed, NotNative
from lazyfs.fuse.init_record import InitRecord, boot_id, load_record, save_record
from lazyfs.fuse.loop import resend
from lazyfs.fuse.session import Session, is_init, patched
from lazyfs.kernel.fuse_mount import connection_number, connections_at, mount_fuse
from lazyfs.kernel.mounting import unmount

_log = logging.getLogger(__name__)

FD_NAME: Final = "fuse"
_SUBTYPE: Final = "lazyfs-gate"
"""Not `lazyfs`: the gate is neither an image nor a user's mount."""
_READ_AHEAD_KB: Final = 1024
"""Not more: a page fault in a mapped file reads the whole window around the page."""
_LARGEST_REQUEST: Final = 2 << 20
"""The kernel refuses a buffer smaller than its largest possible request."""


class FdStore(Protocol):
    """Keeps descriptors for the next process, by name."""

    def get(self, name: str) -> int | None:
        """The descriptor that this process was given, or has kept since."""

    def keep(self, name: str, descriptor: int) -> None:
        """Hand a duplicate of `descriptor` to the keeper."""

    def drop(self, name: str) -> None:
        """Close it in this process and in the keeper."""


class Connection(NamedTuple):
    """The gate's mount, now being served."""

    directory: Path
    """Where it is mounted."""
    number: int
    """Its name under /sys/fs/fuse/connections."""
    taken_over: bool
    """False if it is new: overlays on an older connection are lost and must be mounted again."""
    is_mounted: bool = True
    """False if the previous process unmounted it and died while overlays still used it. No new overlay can use it."""

    async def unmount(self) -> None:
        """Detach the gate. `serve_gate` returns once no overlay uses it any more. Raises MountFailed."""
        await trio.to_thread.run_sync(_detach_all, self.directory, abandon_on_cancel=True)


async def serve_gate(
    operations: pyfuse3.Operations,
    at: Path,
    fds: FdStore,
    *,
    task_status: trio.TaskStatus[Connection] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the gate at the mount point `at` until the kernel reports that the last user of the connection is gone (ENODEV).

    The init record is the file `init` beside `at`. Reports started just before it reads requests, those of a dead process first.
    Until then this process must not access the gate or an overlay on it, and never from the event loop. Raises MountFailed (NotNative
    if the kernel refuses the mount). Cancelled: the connection stays with the FdStore, and requests wait for the next process.
    """
    maker = _Maker(Path(os.path.realpath(at.parent), at.name), fds)  # not realpath(at): the mount there may be dead
    with Session(operations) as session:
        fd, connection = await maker.connect(session)
        session.attach(fd)
        if connection.taken_over and not session.resend():
            _log.warning(
                "this kernel (%s) cannot repeat the requests of the process that died: their callers wait until 1 is written "
                "to /sys/fs/fuse/connections/%d/abort, which ends the connection for all",
                os.uname().release,
                connection.number,
            )
        _tune(connection.number)
        how = "new" if not connection.taken_over else "taken over" if connection.is_mounted else "taken over, unmounted already"
        _log.info("connection %d at %s: %s", connection.number, connection.directory, how)
        task_status.started(connection)
        await session.serve()
    _log.info("connection %d has ended", connection.number)
    maker.forget()


class _Maker:
    """Takes over or creates the connection of one mount point."""

    def __init__(self, gate: Path, fds: FdStore) -> None:
        self._gate = gate
        self._record = gate.with_name("init")
        self._fds = fds

    async def connect(self, session: Session) -> tuple[int, Connection]:
        """The descriptor of the connection, on which libfuse (in `session`) and the kernel have agreed, and the connection."""
        found = self._fds.get(FD_NAME)
        if found is not None:
            if _has_ended(found):
                _log.info("the saved connection has ended")
            elif record := await self._agree(session, found):
                is_mounted = record.connection in connections_at(self._gate, _SUBTYPE)
                return found, Connection(self._gate, record.connection, taken_over=True, is_mounted=is_mounted)
            else:
                _log.error(
                    "%s does not describe the FUSE connection at %s, so it cannot be served: aborting it; reads through it fail "
                    "until the image is mounted again",
                    self._record,
                    self._gate,
                )
            self.forget()
        await trio.to_thread.run_sync(_detach_all, self._gate, abandon_on_cancel=True)
        fd = self._mount()
        try:
            record = await self._agree(session, fd)
            if record is None:
                raise MountFailed(f"the kernel says no FUSE_INIT to the connection at {self._gate}")
        except MountFailed:
            # Unanswered, it would block every access.
            _detach_all(self._gate)
            self.forget()
            raise
        return fd, Connection(self._gate, record.connection, taken_over=False)

    def forget(self) -> None:
        """Drop the connection and its record."""
        self._record.unlink(missing_ok=True)
        self._fds.drop(FD_NAME)

    def _mount(self) -> int:
        self._record.unlink(missing_ok=True)
        try:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise NotNative(f"/dev/fuse cannot be opened: {error.strerror}", hint="`modprobe fuse`, as root") from error
        try:
            self._gate.mkdir(mode=0o700, exist_ok=True)
            mount_fuse(fd, self._gate, _SUBTYPE, "lazyfsd")
        except OSError as error:
            os.close(fd)
            raise NotNative(f"cannot mount at {self._gate}: {error.strerror}", hint="This needs root (CAP_SYS_ADMIN)") from error
        # Not earlier: a connection that is not mounted yet polls as broken, and systemd would drop it at once.
        self._fds.keep(FD_NAME, fd)
        return fd

    async def _agree(self, session: Session, fd: int) -> InitRecord | None:
        """Answer or repeat FUSE_INIT. None if the kernel had a reply that is not on record. Raises MountFailed."""
        # Older kernels do not report a descriptor's connection number; the mounted one is ours.
        number = connection_number(fd) or next(reversed(connections_at(self._gate, _SUBTYPE)), None)
        record = load_record(self._record, number)
        if record is None:
            asked = _read_init(fd)
            if asked is None or number is None:
                return None
            record = InitRecord(boot_id(), number, asked, await session.answer(asked))
            try:
                await trio.to_thread.run_sync(save_record, self._record, record)
            except OSError as error:
                raise MountFailed(f"cannot write {self._record}: {error.strerror}") from error
        else:
            answered = await session.answer(record.asked)
            if answered != record.answered:
                raise MountFailed(
                    f"this libfuse answers FUSE_INIT with {answered.hex()}, and connection {record.connection} was made with "
                    f"{record.answered.hex()}",
                    hint=f"Start lazyfsd with the libfuse that it was mounted with; or give up what is mounted: write 1 to "
                    f"/sys/fs/fuse/connections/{record.connection}/abort (mount -t fusectl none /sys/fs/fuse/connections)",
                )
        # An earlier process may have sent this already before it died; then the kernel refuses it.
        with suppress(FileNotFoundError):
            os.write(fd, patched(record.asked, record.answered))
        return record


def _read_init(fd: int) -> bytes | None:
    """The kernel's FUSE_INIT, even if a process has read it and died; None if it was answered."""
    for _ in range(2):
        with suppress(BlockingIOError):
            request = os.read(fd, _LARGEST_REQUEST)
            return request if is_init(request) else None
        resend(fd)
    return None


def _has_ended(fd: int) -> bool:
    state = select.poll()
    state.register(fd, 0)
    return bool(state.poll(0))


def _detach_all(gate: Path) -> None:
    """Detach every connection mounted at `gate`. Blocking. Raises MountFailed."""
    while connections_at(gate, _SUBTYPE):
        try:
            unmount(gate, lazy=True)
        except OSError as error:
            if error.errno != errno.EINVAL:  # already unmounted by somebody else
                raise MountFailed(f"cannot unmount {gate}: {error.strerror}") from error


def _tune(number: int) -> None:
    # The kernel resets it when FUSE_INIT is answered, so it is set after that.
    try:
        Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb").write_text(f"{_READ_AHEAD_KB}\n")
    except OSError as error:
        _log.info("cannot change the read-ahead of connection %d: %s", number, error.strerror)
