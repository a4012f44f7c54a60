"""A gate without images, for tests of the session and the keeper: `python -m tests.toy_gate [--keeper] STATE [PAUSE]`.

The file `NAME-SIZE` has SIZE bytes that follow from its name. A name that begins with `local` is "not here"; with `slow` its lookup
and each read of it take PAUSE seconds; with `stuck` they wait until there is a file STATE/lookups or STATE/reads. For each lookup a
line goes to STATE/asked, for each read to STATE/read, for each process its number to STATE/process.
It ends with its connection; SIGTERM unmounts. With --keeper it is started by lazyfsd's keeper.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from lazyfs.daemon.fdstore import FdStore
from lazyfs.daemon.keeper import keep
from lazyfs.errors import LazyfsError, most_severe
from lazyfs.fuse.connection import Connection, serve_gate
from lazyfs.fuse.gate_operations import GateOperations
from lazyfs.gate.gate import Attributes

PREFIXES: Final = ("file", "slow", "stuck")


def content(name: str, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or a part of them."""
    total = int(name.rpartition("-")[2])
    end = total if size is None else min(total, offset + size)
    block = hashlib.sha256(name.encode()).digest()
    return (block * ((end + 31) // 32))[offset:end]


class ToyGate:
    """What GateOperations asks of a Gate."""

    def __init__(self, state: Path, pause: float) -> None:
        self._state = state
        self._pause = pause

    async def lookup(self, directory: int, name: bytes, thread: int) -> Attributes | None:
        self._note("asked", name.decode())
        if name.startswith(b"local"):
            return None
        await self._wait(name.decode(), self._state / "lookups")
        return await self.attributes(_inode(name.decode()))

    async def attributes(self, inode: int) -> Attributes:
        return Attributes(inode, stat.S_IFREG | 0o444, inode & 0xFFFF_FFFF)

    def opened(self, inode: int) -> None:
        """Nothing becomes whole here."""

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        self._note("read", _name(inode))
        await self._wait(_name(inode), self._state / "reads")
        return content(_name(inode), offset, size)

    def _note(self, file_name: str, name: str) -> None:
        with (self._state / file_name).open("a") as file:
            file.write(f"{name}\n")

    async def _wait(self, name: str, free: Path) -> None:
        if name.startswith("slow"):
            await trio.sleep(self._pause)
        while name.startswith("stuck") and not free.exists():  # noqa: ASYNC110  another process makes it
            await trio.sleep(0.01)


def _inode(name: str) -> int:
    # PREFIX NUMBER-SIZE, packed: any process derives the name from the number.
    stem, _, size = name.rpartition("-")
    prefix = stem.rstrip("0123456789")
    return PREFIXES.index(prefix) << 60 | 1 << 59 | int(stem[len(prefix) :]) << 32 | int(size)


def _name(inode: int) -> str:
    return f"{PREFIXES[inode >> 60]}{inode >> 32 & 0x3FF_FFFF}-{inode & 0xFFFF_FFFF}"


async def _unmount_on_signal(connection: Connection) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            await connection.unmount()


async def serve(state: Path, pause: float) -> None:
    """Until the connection ends."""
    fds = FdStore.from_environment()
    operations = GateOperations(ToyGate(state, pause))  # type: ignore[arg-type]  # it asks for no more
    async with trio.open_nursery() as nursery:
        connection = await nursery.start(serve_with_end, nursery.cancel_scope, operations, state, fds)
        (state / "process").write_text(str(os.getpid()))
        fds.notify("READY=1")
        nursery.start_soon(_unmount_on_signal, connection)


async def serve_with_end(
    scope: trio.CancelScope,
    operations: GateOperations,
    state: Path,
    fds: FdStore,
    *,
    task_status: trio.TaskStatus[Connection] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As serve_gate, and its end is that of all."""
    await serve_gate(operations, state / "gate", fds, task_status=task_status)
    scope.cancel()


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    if arguments[0] == "--keeper":
        os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
        return keep(Path(arguments[1]), [sys.executable, "-m", "tests.toy_gate", *arguments[1:]], {})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(process)d: %(message)s")
    os.umask(0o077)
    try:
        trio.run(serve, Path(arguments[0]), float(arguments[1]) if len(arguments) > 1 else 0.0)
    except BaseExceptionGroup as group:
        error = most_severe(group)
        if not isinstance(error, LazyfsError):
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
