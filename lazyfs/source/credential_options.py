"""Options for credentials: on the command line, in a file, or on standard input.

Every user of the machine can read a command line, in /proc/PID/cmdline, as long as the process lives. So a file or standard
input is better. A process that gets a password on its command line first removes it from its title. Until then, for the roughly
ten milliseconds in which Python starts, it can be read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from lazyfs.errors import UsageError

_MAX_SIZE: Final = 64 << 10
_PREFIXES: Final = ("", "src-", "dst-")
_HIDDEN: Final = "USER:***"


def add_creds(parser: argparse.ArgumentParser, prefix: str = "", where: str = "instead of ~/.docker/config.json") -> None:
    """Add --creds, --creds-file and, without a `prefix`, --creds-stdin. `where` says when they are used."""
    group = parser.add_mutually_exclusive_group()
    name = f"--{prefix}creds"
    group.add_argument(name, metavar="USER:PASSWORD", help=f"{where}. Other users can see a command line: better use {name}-file")
    group.add_argument(
        f"{name}-file", metavar="FILE", type=Path, help=f"the same, from a file of one line, USER:PASSWORD, {where}"
    )
    if not prefix:
        group.add_argument(
            f"{name}-stdin",
            action="store_true",
            help="the same, from the first line of standard input; the rest of it is left alone",
        )


def resolve_creds(arguments: argparse.Namespace) -> None:
    """Store the content of a file or of standard input as the value of --creds. Raises UsageError, which does not quote it."""
    for prefix in _PREFIXES:
        name = f"{prefix}creds".replace("-", "_")
        file: Path | None = getattr(arguments, f"{name}_file", None)
        if file is not None:
            setattr(arguments, name, _read_file(file, f"--{prefix}creds-file"))
        elif getattr(arguments, f"{name}_stdin", False):
            setattr(arguments, name, _read_stdin())


def hide_creds(arguments: Sequence[str]) -> None:
    """Remove passwords on the command line `arguments` from this process's title, if setproctitle is installed (the extra
    `mount`)."""
    if any(argument.startswith(_options()) for argument in arguments):
        with suppress(ModuleNotFoundError):
            from setproctitle import setproctitle

            setproctitle(" ".join(_hidden(sys.orig_argv)))


def _options() -> tuple[str, ...]:
    return tuple(f"--{prefix}creds" for prefix in _PREFIXES)


def _hidden(arguments: Sequence[str]) -> list[str]:
    options = _options()
    shown, before = [], ""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if before in options:
            shown.append(_HIDDEN)
        else:
            shown.append(f"{name}={_HIDDEN}" if equals and name in options else argument)
        before = argument
    return shown


def _read_file(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_SIZE:
        raise UsageError(
            f"{option}: {path} has more than {_MAX_SIZE} bytes", hint="It has to be a file of one line, USER:PASSWORD"
        )
    lines = data.splitlines()
    if len(lines) > 1:
        raise UsageError(f"{option}: {path} has {len(lines)} lines", hint="It has to be a file of one line, USER:PASSWORD")
    return _checked(lines[0] if lines else b"", f"{option}: {path}")


def _read_stdin() -> str:
    """Read the first line, byte by byte: the rest belongs to a program (`lazyfs run`)."""
    line = bytearray()
    try:
        while (byte := os.read(0, 1)) not in (b"", b"\n"):
            line += byte
            if len(line) > _MAX_SIZE:
                raise UsageError(f"--creds-stdin: the line on standard input has more than {_MAX_SIZE} bytes")
    except OSError as error:
        raise UsageError(f"--creds-stdin: standard input cannot be read: {error.strerror}") from error
    return _checked(bytes(line).removesuffix(b"\r"), "--creds-stdin: standard input")


def _checked(line: bytes, what: str) -> str:
    if not line:
        raise UsageError(f"{what} is empty", hint="It has to be one line, USER:PASSWORD")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not UTF-8") from None
    user, colon, _ = text.partition(":")
    if not user or not colon or "\0" in text:
        raise UsageError(f"{what} does not contain USER:PASSWORD")
    return text
