"""The adapter between pyfuse3 and the gate, called as pyfuse3 calls it."""

from __future__ import annotations

import errno
import os
import stat
from typing import cast

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FileHandleT, FUSEError, InodeT, RequestContext

from lazyfs.errors import Unreachable
from lazyfs.fuse.gate_operations import GateOperations
from lazyfs.gate.gate import Attributes, Gate
from tests.conftest import LogWatch

FOR_EVER = 1e9


class Context:
    """Of a request."""

    pid = 4711


CONTEXT = cast("RequestContext", Context())


class ScriptedGate:
    """Returns scripted answers, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes, int]] = []
        self.answer: Attributes | None = None
        self.reopened: list[int] = []

    async def lookup(self, directory: int, name: bytes, thread: int) -> Attributes | None:
        self.asked.append((directory, name, thread))
        return self.answer

    async def attributes(self, inode: int) -> Attributes:
        if inode == 9:
            raise Unreachable("never heard of it")
        return Attributes(inode, stat.S_IFREG | 0o444, 513)

    def opened(self, inode: int) -> None:
        self.reopened.append(inode)

    async def read(self, inode: int, offset: int, size: int) -> memoryview:
        return memoryview(b"%d %d %d" % (inode, offset, size))


@pytest.fixture
def gate() -> ScriptedGate:
    return ScriptedGate()


@pytest.fixture
def operations(gate: ScriptedGate) -> GateOperations:
    return GateOperations(cast("Gate", gate))


async def test_look_on(gate: ScriptedGate, operations: GateOperations) -> None:
    """None is "no such name", and not to be remembered."""
    entry = await operations.lookup(InodeT(1), b"name", CONTEXT)
    assert (entry.st_ino, entry.entry_timeout) == (0, 0)
    assert gate.asked == [(1, b"name", 4711)]


async def test_entry(gate: ScriptedGate, operations: GateOperations) -> None:
    """An entry is valid for ever, and shows the blocks of a file that is all there."""
    gate.answer = Attributes(77, stat.S_IFREG | 0o444, 513)
    entry = await operations.lookup(InodeT(1), b"name", CONTEXT)
    assert _facts(entry) == (77, stat.S_IFREG | 0o444, 513, 2, 1)
    assert (entry.entry_timeout, entry.attr_timeout) == (FOR_EVER, FOR_EVER)


async def test_root_needs_no_gate() -> None:
    """overlayfs asks for the root and for statfs when it mounts: nothing may have to be loaded for that."""
    operations = GateOperations(cast("Gate", None))
    root = await operations.getattr(InodeT(pyfuse3.ROOT_INODE), CONTEXT)
    assert _facts(root) == (1, stat.S_IFDIR | 0o555, 0, 0, 2)
    assert (await operations.statfs(CONTEXT)).f_namemax == 255


async def test_attributes(operations: GateOperations, expect_log: LogWatch) -> None:
    """The attributes of an inode; an error for an unknown one."""
    assert _facts(await operations.getattr(InodeT(77), CONTEXT))[:3] == (77, stat.S_IFREG | 0o444, 513)
    expect_log("never heard of it")
    with pytest.raises(FUSEError) as caught:
        await operations.getattr(InodeT(9), CONTEXT)
    assert caught.value.errno == errno.EIO


async def test_handle_is_the_inode(operations: GateOperations, gate: ScriptedGate) -> None:
    """A handle means the same in the process that takes over. The gate hears of what is opened."""
    opened = await operations.open(InodeT(77), os.O_RDONLY, CONTEXT)
    assert (opened.fh, opened.keep_cache) == (77, True)
    assert gate.reopened == [77]
    assert await operations.opendir(InodeT(1), CONTEXT) == 1
    assert bytes(await operations.read(FileHandleT(77), 5, 10)) == b"77 5 10"


async def test_nothing_is_written(operations: GateOperations) -> None:
    """Objects are immutable."""
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(FUSEError) as caught:
            await operations.open(InodeT(77), flags, CONTEXT)
        assert caught.value.errno == errno.EROFS


def _facts(entry: EntryAttributes) -> tuple[int, int, int, int, int]:
    return entry.st_ino, entry.st_mode, entry.st_size, entry.st_blocks, entry.st_nlink
