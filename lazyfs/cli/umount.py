"""Take a mount away.

A busy mount is left as it is, and those who hold it are named; --lazy detaches it all the same: it vanishes at once, and its
process ends with its last user.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lazyfs.mount.unmount import unmount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="where it is mounted")
    parser.add_argument("--lazy", action="store_true", help="detach a busy mount")


def run(arguments: argparse.Namespace) -> int:
    """Unmount. Raises MountFailed."""
    unmount(arguments.directory, lazy=arguments.lazy)
    return 0
