"""The one FUSE connection of a state directory: made, or taken over from a process that died.

The connection lives as long as somebody holds its descriptor, and somebody is to hold it who does not die with us: an FdStore
(lazyfsd's keeper, or systemd). Whoever starts next is handed it and goes on: the kernel repeats what was asked and not
answered, and nobody below notices. That works because file handles and inodes mean the same in every process.

What a start may find, and what it does:

- no connection: what is still mounted at STORE/gate is dead; it is detached, and a new connection is mounted;
- a connection whose FUSE_INIT nobody answered (we died just there): it is answered now;
- a connection and the record of its FUSE_INIT (init_record.py): taken over. If this libfuse would answer differently than the kernel was
  told, nothing can be served: an error, and the connection is left for a libfuse that fits;
- a connection without its record: nobody can ever serve it. It is given up, which ends its waiting callers with an error;
- a connection that has ended: as if there were none.

The record is durable before the kernel hears the answer, and it is gone before a new connection is made: a record that names the
connection's number tells the truth about it.
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
"""Not lazyfs: it is not an image, and no mount that a user made."""
_READ_AHEAD_KB: Final = 1024
"""Not more: a page fault in a mapped file asks for the whole window around the page."""
_LARGEST_REQUEST: Final = 2 << 20
"""The kernel refuses a buffer that its largest possible request does not fit into."""


class FdStore(Protocol):
    """Keeps descriptors for the next process, by name."""

    def get(self, name: str) -> int | None:
        """The descriptor that was handed to this process, or that it has kept since."""

    def keep(self, name: str, descriptor: int) -> None:
        """Hand a duplicate of `descriptor` to the keeper."""

    def drop(self, name: str) -> None:
        """Close it, here and there."""


class Connection(NamedTuple):
    """The gate's mount, answered from now on."""

    directory: Path
    """Where it is mounted."""
    number: int
    """Its name under /sys/fs/fuse/connections."""
    taken_over: bool
    """False: it is new, and what was stacked on an older one of this directory is lost: it must be mounted again."""
    is_mounted: bool = True
    """False: the process before this one unmounted it, and died while something was still stacked on it. Nothing else can be."""

    async def unmount(self) -> None:
        """Take the gate out of the tree. `serve_gate` returns once nothing is stacked on it any more. Raises MountFailed."""
        await trio.to_thread.run_sync(_detach_all, self.directory, abandon_on_cancel=True)


async def serve_gate(
    operations: pyfuse3.Operations,
    at: Path,
    fds: FdStore,
    *,
    task_status: trio.TaskStatus[Connection] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer what the kernel asks at the mount point `at`, until it says that the last user of the connection is gone (ENODEV).

    What was agreed with the kernel is recorded beside `at`, in the file `init`. Started when requests are about to be read: those of a
    dead process come first. Nothing of this process may touch the gate, or what is stacked on it, before that, nor ever from the
    event loop. Raises MountFailed (NotNative where the kernel will not mount it). Cancelled: the connection stays with the FdStore,
    and what is asked waits for the next process.
    """
    maker = _Maker(Path(os.path.realpath(at.parent), at.name), fds)  # not realpath(at): what is mounted there may be dead
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
    """Finds or makes the connection of one mount point."""

    def __init__(self, gate: Path, fds: FdStore) -> None:
        self._gate = gate
        self._record = gate.with_name("init")
        self._fds = fds

    async def connect(self, session: Session) -> tuple[int, Connection]:
        """A connection that libfuse, in `session`, and the kernel agree on, and its descriptor."""
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
            # Unanswered, it would stop everybody who touches it.
            _detach_all(self._gate)
            self.forget()
            raise
        return fd, Connection(self._gate, record.connection, taken_over=False)

    def forget(self) -> None:
        """Let go of the connection and of its record."""
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
        # Not earlier: one that is not mounted yet looks broken, and systemd would drop it at once.
        self._fds.keep(FD_NAME, fd)
        return fd

    async def _agree(self, session: Session, fd: int) -> InitRecord | None:
        """Have libfuse and the kernel agree. None: the kernel was answered, and nobody knows how. Raises MountFailed."""
        # Older kernels do not tell a descriptor's number, but what is mounted is ours.
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
        # Whether one who died here before us has said this already, only the kernel knows.
        with suppress(FileNotFoundError):
            os.write(fd, patched(record.asked, record.answered))
        return record


def _read_init(fd: int) -> bytes | None:
    """The kernel's FUSE_INIT, also where a process has read it and died; None if it was answered."""
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
    """Detach whatever connection is mounted at `gate`. Blocking. Raises MountFailed."""
    while connections_at(gate, _SUBTYPE):
        try:
            unmount(gate, lazy=True)
        except OSError as error:
            if error.errno != errno.EINVAL:  # not mounted any more: somebody else was quicker
                raise MountFailed(f"cannot unmount {gate}: {error.strerror}") from error


def _tune(number: int) -> None:
    # The kernel takes it anew from our answer to FUSE_INIT, so it is set after that.
    try:
        Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb").write_text(f"{_READ_AHEAD_KB}\n")
    except OSError as error:
        _log.info("cannot change the read-ahead of connection %d: %s", number, error.strerror)
