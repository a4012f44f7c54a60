"""libfuse greeted over a socket: no kernel, no mount."""

from __future__ import annotations

import os
import struct

import pyfuse3
import pytest

from lazyfs.errors import MountFailed
from lazyfs.fuse.session import Session, is_answer, is_init, patched

PARALLEL_DIROPS, CACHE_SYMLINKS, ASYNC_READ = 1 << 18, 1 << 23, 1


def init(major: int = 7, minor: int = 45, flags: int = 0x73FF_FFFB, unique: int = 2) -> bytes:
    """A kernel's FUSE_INIT, as include/uapi/linux/fuse.h has it."""
    header = struct.pack("<IIQQIIIHH", 104, 26, unique, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("<IIIII44x", major, minor, 128 << 10, flags, 0)


class Answer:
    """The fields of an answer that matter here."""

    def __init__(self, message: bytes) -> None:
        self.length, self.error, self.unique = struct.unpack_from("<IiQ", message)
        self.major, self.minor, self.readahead, self.flags = struct.unpack_from("<IIII", message, 16)
        self.max_background, self.congested, self.max_write = struct.unpack_from("<HHI", message, 32)


async def test_libfuse_answers_over_a_socket() -> None:
    """The answer agrees, names the request, and is the same each time, in each session: that is what a take-over hangs on."""
    answers = []
    for _ in range(2):
        with Session(pyfuse3.Operations()) as session:
            answers.append(await session.answer(init(unique=1 << 63 | 2)))
    assert answers[0] == answers[1]
    answer = Answer(answers[0])
    assert (answer.major, answer.unique, answer.length) == (7, 1 << 63 | 2, len(answers[0]))
    assert answer.max_write == 1 << 20


async def test_session_leaves_no_descriptor() -> None:
    """Sessions come and go without one."""
    before = os.listdir("/proc/self/fd")
    with Session(pyfuse3.Operations()) as session:
        await session.answer(init())
    with Session(pyfuse3.Operations()):
        pass  # never asked
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_libfuse_refuses() -> None:
    """A kernel that libfuse cannot speak to is an error in words."""
    with Session(pyfuse3.Operations()) as session:
        with pytest.raises(MountFailed, match="does not agree to the FUSE_INIT"):
            await session.answer(init(major=6))


async def test_patched_answer() -> None:
    """Parallel lookups and cached symlinks where the kernel offers them, room for many requests, and nothing else changed."""
    with Session(pyfuse3.Operations()) as session:
        answered = await session.answer(init())
    assert not Answer(answered).flags & (PARALLEL_DIROPS | CACHE_SYMLINKS)
    message = patched(init(), answered)
    answer = Answer(message)
    assert answer.flags == Answer(answered).flags | PARALLEL_DIROPS | CACHE_SYMLINKS
    assert (answer.max_background, answer.congested) == (4096, 3072)
    assert (message[:28], message[36:]) == (answered[:28], answered[36:])


async def test_patch_offers_nothing_of_its_own() -> None:
    """What the kernel does not offer is not agreed to."""
    with Session(pyfuse3.Operations()) as session:
        answered = await session.answer(init())
    assert Answer(patched(init(flags=ASYNC_READ), answered)).flags == Answer(answered).flags


@pytest.mark.parametrize("length", [0, 15, 16, 35])
def test_short_messages(length: int) -> None:
    """A message that breaks off is neither a question nor an answer."""
    assert is_init(init())
    assert not is_init(init()[:length])
    assert not is_answer(struct.pack("<IiQ40x", length, 0, 2)[:length])


def test_other_messages() -> None:
    """Another operation is not an FUSE_INIT; an error is not an agreement."""
    assert not is_init(struct.pack("<IIQQIIIHH64x", 104, 1, 2, 1, 0, 0, 0, 0, 0))
    assert not is_answer(struct.pack("<IiQ64x", 80, -71, 2))
    assert is_answer(struct.pack("<IiQ64x", 80, 0, 2))
