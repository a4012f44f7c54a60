"""How an image says that its program is to be started: the `config` object of its config document, with the user's options over it.

Source: the OCI image specification, config.md. Docker's own documents use the same names. None of it is trusted: it names no file of
this machine, and the paths in it are resolved inside of the image.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Final

import msgspec

from lazyfs.errors import InvalidManifest, LazyfsError, show
from lazyfs.format.foreign_json import decode, fields

_DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_ARGUMENTS: Final = 1 << 20
"""Bytes of all arguments and variables: half of the kernel's limit for execve."""


class Settings(msgspec.Struct, frozen=True):
    """How the program is started."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    """`NAME=VALUE`, each name once. HOME and TERM are added later: they depend on the user and the terminal."""
    user: str
    """As the image or the user wrote it: `NAME`, `UID`, `NAME:GROUP`, `UID:GID`, or empty."""
    workdir: str
    """Absolute."""


class _Settings(msgspec.Struct, frozen=True, rename="pascal"):
    entrypoint: tuple[str | None, ...] = ()
    cmd: tuple[str | None, ...] = ()
    env: tuple[str | None, ...] = ()
    user: str = ""
    working_dir: str = ""


def read_settings(
    config: str | bytes, command: Sequence[str] = (), *, env: Sequence[str] = (), user: str = "", workdir: str = ""
) -> Settings:
    """The settings of an image's config document, overridden by the user's.

    `command` replaces the image's CMD, after its entrypoint. Raises InvalidManifest for an invalid document, LazyfsError if there is no
    program to start.
    """
    try:
        found = _read(config)
    except msgspec.DecodeError as error:
        raise InvalidManifest(f"the image's config cannot be run from: {error}") from error
    args = (*_strings(found.entrypoint), *(command or _strings(found.cmd)))
    if not args or not args[0]:
        raise LazyfsError("the image names no program to start", hint="Name one behind the image: lazyfs run IMAGE PROGRAM")
    variables = {"PATH": _DEFAULT_PATH}
    # As in Docker and runc, a variable without `=` is dropped.
    variables |= {text.partition("=")[0]: text for text in (*_strings(found.env), *env) if text.find("=") > 0}
    settings = Settings(
        args,
        tuple(variables.values()),
        user or found.user,
        posixpath.normpath("/" + (workdir or found.working_dir)).replace("//", "/"),
    )
    _check((*settings.args, *settings.env, settings.user, settings.workdir))
    return settings


def _read(config: str | bytes) -> _Settings:
    document = decode(config)
    if not isinstance(document, dict):
        raise msgspec.DecodeError("it is not an object")
    settings = fields(document, ("config",)).get("config", {})
    if not isinstance(settings, dict):
        raise msgspec.DecodeError("its config is not an object")
    return msgspec.convert(fields(settings, _Settings.__struct_encode_fields__), _Settings)


def _strings(found: Sequence[str | None]) -> tuple[str, ...]:
    """Go decodes a null in a list of strings as an empty string."""
    return tuple(text or "" for text in found)


def _check(texts: Sequence[str]) -> None:
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise LazyfsError(f"{show(error.object)} is not UTF-8, which a runtime's configuration has to be") from error
    if size > _MAX_ARGUMENTS:
        raise LazyfsError(
            f"arguments and variables have {size} bytes, which no program can be given: the limit is {_MAX_ARGUMENTS}"
        )
    if any("\0" in text for text in texts):
        raise LazyfsError("an argument or a variable holds a NUL, which no program can be given")
