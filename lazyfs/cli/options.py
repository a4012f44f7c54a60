"""Options that several commands share."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

from lazyfs.errors import UsageError, show
from lazyfs.format.platform import Platform, parse_platform, this_platform
from lazyfs.registry.access import AccessOptions, parse_creds
from lazyfs.source.credential_options import add_creds
from lazyfs.source.reference import Reference, parse_reference
from lazyfs.store.location import default_directory
from lazyfs.store.size import parse_size

_AGES: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def add_image(parser: argparse.ArgumentParser) -> None:
    """SRC, and the options of its registry."""
    parser.add_argument("source", metavar="SRC", help="the image: [docker://]HOST/REPO[:TAG][@DIGEST] or oci:DIR[:TAG]")
    parser.add_argument("--platform", metavar="OS/ARCH", help="which image of several (default: this machine's)")
    add_creds(parser)
    parser.add_argument("--plain-http", action="store_true", help="no TLS (loopback never uses it)")


def add_store(parser: argparse.ArgumentParser) -> None:
    """--store."""
    parser.add_argument(
        "--store",
        metavar="DIR",
        type=Path,
        default=None,
        help="the store (default: /var/lib/lazyfs for root, ~/.cache/lazyfs otherwise)",
    )


def add_store_size(parser: argparse.ArgumentParser) -> None:
    """--store-size."""
    parser.add_argument(
        "--store-size",
        metavar="SIZE",
        help="bound of the store's size from now on, as 500M or 20G: unneeded files are removed first (0: no bound; default: unchanged)",
    )


def reference_of(arguments: argparse.Namespace) -> Reference:
    """SRC; the directory of a layout is made absolute, because a daemon's working directory is `/`. Raises UsageError."""
    reference = parse_reference(arguments.source)
    if reference.transport == "oci":
        return Reference("oci", str(Path(reference.location).absolute()), reference.tag, reference.digest)
    return reference


def access_of(arguments: argparse.Namespace) -> AccessOptions:
    """--creds and --plain-http."""
    return AccessOptions(parse_creds(arguments.creds) if arguments.creds else None, arguments.plain_http)


def platform_of(arguments: argparse.Namespace) -> Platform:
    """--platform."""
    return parse_platform(arguments.platform) if arguments.platform else this_platform()


def store_of(arguments: argparse.Namespace) -> Path:
    """--store."""
    return Path(arguments.store or default_directory()).absolute()


def store_size_of(arguments: argparse.Namespace) -> int:
    """--store-size in bytes; -1 if it is not given. Raises UsageError."""
    return parse_size(arguments.store_size) if arguments.store_size is not None else -1


def parse_age(text: str) -> float:
    """Seconds of `90s`, `30m`, `12h`, `7d`. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)", text.strip(), re.ASCII)
    if not found:
        raise UsageError(f"{show(text)} is not an age", hint="Write seconds, or a number with m, h or d behind it")
    return float(found[1]) * _AGES[found[2]]
