"""What an image says about the program to start: the `config` object of its config document, and what the user puts over it.

Source: the OCI image specification, config.md. Docker's own documents hold the same under the same names. Nothing of
it is trusted: it names no file of this machine, and what it names inside of the image is looked up inside of the image.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Final

import msgspec

from lazyfs.errors import InvalidManifest, LazyfsError

_DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_TEXTS: Final = 1 << 20
"""Bytes of all arguments and variables: half of what the kernel takes in one execve."""


class Settings(msgspec.Struct, frozen=True):
    """How the program starts."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    """`NAME=VALUE`, each name once; what depends on the user (HOME) or the terminal (TERM) is not in it yet."""
    user: str
    """As the image or the user wrote it: `NAME`, `UID`, `NAME:GROUP`, `UID:GID`, or nothing."""
    workdir: str
    """Absolute."""


class _Settings(msgspec.Struct, frozen=True, rename="pascal"):
    # Go writes what is empty as null.
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    user: str | None = None
    working_dir: str | None = None


class _Document(msgspec.Struct, frozen=True):
    config: _Settings | None = None


def settings_of(
    config: str | bytes, command: Sequence[str] = (), *, env: Sequence[str] = (), user: str = "", workdir: str = ""
) -> Settings:
    """The settings in an image's config document, with the user's own over them.

    `command` takes the place of the image's arguments, behind its entrypoint. Raises InvalidManifest for a document that
    is none, LazyfsError where nothing is left to start.
    """
    try:
        found = msgspec.json.decode(config, type=_Document).config or _Settings()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidManifest(f"the image's config cannot be run from: {error}") from error
    args = (*(found.entrypoint or ()), *(command or found.cmd or ()))
    if not args or not args[0]:
        raise LazyfsError("the image names no program to start", hint="Name one behind the image: lazyfs run IMAGE PROGRAM")
    variables = {"PATH": _DEFAULT_PATH}
    # As in Docker and runc: a variable without a value is none.
    variables |= {text.partition("=")[0]: text for text in (*(found.env or ()), *env) if text.find("=") > 0}
    settings = Settings(
        args,
        tuple(variables.values()),
        user or found.user or "",
        posixpath.normpath("/" + (workdir or found.working_dir or "")).replace("//", "/"),
    )
    _check((*settings.args, *settings.env, settings.user, settings.workdir))
    return settings


def _check(texts: Sequence[str]) -> None:
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise LazyfsError(f"{error.object!r} is not UTF-8, which a runtime's configuration has to be") from error
    if size > _MAX_TEXTS:
        raise LazyfsError(f"arguments and variables have {size} bytes, which no program can be given: the limit is {_MAX_TEXTS}")
    if any("\0" in text for text in texts):
        raise LazyfsError("an argument or a variable holds a NUL, which no program can be given")
