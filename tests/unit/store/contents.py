"""Contents of given bytes, and ways to damage a file; shared by the tests of the store."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from lazyfs.format.entry import Chunk
from lazyfs.store.content import Content, content_of
from lazyfs.store.store import Store


def content(*pieces: bytes) -> Content:
    """The content whose chunks are these bytes."""
    chunks, at = [], 0
    for piece in pieces:
        chunks.append(Chunk(at, len(piece), hashlib.sha256(piece).digest(), 0, 0, 0))
        at += len(piece)
    return content_of(chunks)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no other seed produces."""
    return random.Random(f"{size} {seed}").randbytes(size)


def keep_all(store: Store, pieces: Sequence[bytes]) -> Content:
    """Keep a whole file."""
    made = content(*pieces)
    for index, piece in enumerate(pieces):
        store.keep(made, index, piece)
    return made


def read_all(store: Store, made: Content) -> list[bytes | None]:
    """Every chunk of a file, as the store returns it."""
    return [store.read(made, index, 0, made.chunk_size(index)) for index in range(len(made.digests))]


def under_way(store: Store) -> list[str]:
    """Names of the temporary files of this process: none, except between two steps."""
    return [path.name for path in Path(store.directory.temporary).rglob("*") if path.is_file() and path.name != "lock"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    overwrite(path, 0, bytes(path.stat().st_size))


def flip(path: Path) -> None:
    data = path.read_bytes()
    if data:  # the file may have been cut to nothing before
        overwrite(path, len(data) // 2, bytes([data[len(data) // 2] ^ 0x10]))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """In place, as a failing disk does: the inode stays the same."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    path.chmod(mode & 0o777)


DAMAGES: dict[str, Callable[[Path], None]] = {"cut short": cut, "zeroed": zero, "one byte flipped": flip}
