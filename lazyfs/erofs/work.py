"""The messages for building an image: read a layer's TOC, say what it needs from below, write and publish the image."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO, Final

import msgspec

from lazyfs.erofs.image import write_outline
from lazyfs.erofs.outline import Outline, root_is_opaque
from lazyfs.errors import InvalidToc, LazyfsError, StoreUnusable
from lazyfs.format.dialects import dialect_named
from lazyfs.format.digest import Digest, check
from lazyfs.format.entry import Entry
from lazyfs.format.estargz import ESTARGZ
from lazyfs.store.store_error import store_error

_MOST_IMPLIED: Final = 16 << 20
"""Bytes of names. Real layers imply a handful of directories; each is looked up in all layers below."""


class Read(msgspec.Struct, frozen=True, tag=True):
    """Read the TOC document at `path`."""

    path: str
    digest: Digest
    offset: int
    """Where the chunks end in its blob (`parse_toc`)."""
    arrived: int | None = None
    """Bytes of the compressed TOC; None for a TOC that was parsed and accepted before."""
    dialect: str = ESTARGZ.name


class NeededBelow(msgspec.Struct, frozen=True, tag="Told"):
    """What a layer needs from the layers below it. Its tag is in the notes of a store: it never changes."""

    implied: tuple[bytes, ...]
    """Directories whose attributes it takes from there."""
    opaque: bool
    """Whether it hides all of them."""


class Build(msgspec.Struct, frozen=True, tag=True):
    """Publish the image of the layer read last as `name` in `folder`."""

    folder: str
    name: str
    inherited: tuple[tuple[bytes, Entry], ...]


class Built(msgspec.Struct, frozen=True, tag=True):
    """The image exists, complete and durable."""

    size: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The error's class in lazyfs/errors.py, its message and its hint."""

    kind: str
    message: str
    hint: str


class Worker:
    """Holds the layer that was read last."""

    def __init__(self) -> None:
        self._outline: Outline | None = None

    def answer(self, question: Read | Build) -> NeededBelow | Built | Failed:
        """Carry out a message. A LazyfsError becomes an answer; any other error ends the process, which its parent notices."""
        try:
            return self._read(question) if isinstance(question, Read) else self._build(question)
        except LazyfsError as error:
            return Failed(type(error).__name__, error.message, error.hint)

    def _read(self, read: Read) -> NeededBelow:
        self._outline = None
        try:
            with open(read.path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise StoreUnusable(
                f"the TOC {read.digest} cannot be read from the store: {error.strerror}",
                hint="Mount the image again to fetch it.",
            ) from error
        check(data, read.digest, f"the stored document {read.path}")
        entries = dialect_named(read.dialect).entries(
            data, read.offset, f"the layer with the TOC {read.digest}", arrived=read.arrived, accepted=read.arrived is None
        )
        self._outline = Outline(entries)
        implied = self._outline.implied()
        if sum(map(len, implied)) > _MOST_IMPLIED:
            raise InvalidToc(
                f"the layer with the TOC {read.digest} implies {len(implied)} directories that it does not name",
                hint="A portable mount (--mode portable) shows it.",
            )
        return NeededBelow(implied, root_is_opaque(entries))

    def _build(self, build: Build) -> Built:
        outline, self._outline = self._outline, None
        assert outline is not None, "Read comes before Build"
        outline.complete(dict(build.inherited))
        try:
            return Built(publish(build.folder, build.name, partial(write_outline, outline)))
        except OSError as error:
            raise store_error(error, f"the metadata image {build.name} cannot be written") from error


def publish(folder: str, name: str, write: Callable[[IO[bytes]], None]) -> int:
    """Publish a file `name` in `folder`, mode 0444, with the bytes that `write` writes. Returns its size.

    It gets its name when it is complete and durable, so a crash leaves nothing. An existing file stays. Raises OSError.
    """
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400)
        with open(fd, "wb") as file:
            write(file)
            file.flush()
            os.fchmod(fd, 0o444)
            os.fsync(fd)
            with suppress(FileExistsError):  # another process published the same bytes first
                # os.link follows the symbolic link to the open file only if it is given a directory descriptor.
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=parent, follow_symlinks=True)
            os.fsync(parent)
            return file.tell()
    finally:
        os.close(parent)
