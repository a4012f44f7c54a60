"""`lazyfs`: runs a command, and turns its errors into an exit code.

A command is a module of this folder with `add_arguments(parser)` and `run(arguments) -> int`; its docstring is its help. Only the module of
the given command is imported: start-up is part of the time of a mount.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from lazyfs import __version__
from lazyfs.cli.importing import importing
from lazyfs.cli.output import discard_unwritten, put
from lazyfs.errors import LazyfsError, most_severe, not_installed
from lazyfs.source.credential_options import hide_creds, resolve_creds

_COMMANDS: Final = {
    "convert": "rewrite an image so that it can be mounted lazily",
    "mount": "mount an image's root file system at once; the pull finishes in the background",
    "umount": "unmount an image",
    "run": "run a command in a container of an image, before the image has arrived",
    "pull": "pull an image into containerd, lazily",
    "status": "show what is mounted, and what of it has arrived",
    "ls": "list a directory of an image, without mounting it",
    "cat": "print one file of an image, without mounting it",
    "inspect": "show for each layer whether it can be mounted lazily, or why not",
    "verify": "check everything about an image, from its manifest to its last chunk",
    "store": "inspect, check or clear the store",
    "prune": "remove from the store what no mounted image needs",
    "doctor": "check this machine and say what is missing",
}

_EPILOG: Final = """\
images:
  docker://HOST[:PORT]/REPO[:TAG][@DIGEST]   in a registry; docker:// may be left out (python:3.12)
  oci:DIR[:TAG]                              in an OCI layout on disk

exit codes:
  0  done        1  failed            2  wrong command line    3  the image is not what it claims, or not lazy
  4  a registry or layout did not deliver                     5  this machine refused: disk, permissions, mount
  130  interrupted

example:
  lazyfs convert python:3.12 docker://localhost:5000/python:3.12
  lazyfs mount docker://localhost:5000/python:3.12 /mnt && chroot /mnt python3 -c 'print("hello")'
  lazyfs status /mnt; lazyfs umount /mnt

`lazyfs COMMAND --help` explains each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A LazyfsError is printed to stderr; other exceptions are bugs and show a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        hide_creds(arguments)
    try:
        try:
            code = _run(arguments)
            put("")
        except BaseExceptionGroup as group:  # out of a nursery
            raise most_severe(group) from None
    except LazyfsError as error:
        print(f"lazyfs: {error}", file=sys.stderr)
        code = error.exit_code
    except ModuleNotFoundError as error:
        missing = not_installed(error)
        if missing is None:
            raise
        print(f"lazyfs: {missing}", file=sys.stderr)
        code = missing.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1  # the reader of the output has gone, as `head` does
    discard_unwritten()
    return code


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name == "convert":
        from converter.command import main as convert  # the only import of the converter in lazyfs

        return int(convert(arguments[1:]))
    if name in _COMMANDS:
        with importing():
            command = importlib.import_module(f"lazyfs.cli.{name}")
        parser = argparse.ArgumentParser(
            prog=f"lazyfs {name}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=command.__doc__,
            allow_abbrev=False,
        )
        command.add_arguments(parser)
        options = parser.parse_args(arguments[1:])
        resolve_creds(options)
        return int(command.run(options))
    _overview().parse_args(arguments)
    return 2


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lazyfs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Start containers before their images have arrived.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lazyfs {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in _COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser
