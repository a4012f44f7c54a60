"""Check this machine and say what is missing: kernel, FUSE, limits, lazyfsd, containerd's configuration.

Each line begins with `ok`, with `loss` where something works less well than it could, or with `missing` where something does not work.
Nothing is changed: a native mount is tried and removed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from lazyfs.cli.options import add_store
from lazyfs.doctor.containerd import examine_containerd
from lazyfs.doctor.finding import Finding
from lazyfs.doctor.machine import examine_machine
from lazyfs.doctor.service import examine_service, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_store(parser)
    parser.add_argument(
        "--config", metavar="FILE", type=Path, default=Path("/etc/lazyfs/config.toml"), help="lazyfsd's (%(default)s)"
    )
    parser.add_argument(
        "--containerd", metavar="FILE", type=Path, default=Path("/etc/containerd/config.toml"), help="containerd's (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line: about, verdict, text, hint")


def run(arguments: argparse.Namespace) -> int:
    """Look and print, each finding at once. Exit code 1 where something is missing."""
    wrong = False
    for finding in _examine(arguments):
        wrong |= finding.verdict == "missing"
        if arguments.json:
            print(json.dumps(finding._asdict()))
        else:
            print(f"{finding.verdict:8}{finding.text}" + (f"\n{'':8}-> {finding.hint}" if finding.hint else ""), flush=True)
    return 1 if wrong else 0


def _examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    config, finding = read_config(arguments.config)
    store = (arguments.store or config.store).absolute()
    yield from examine_machine(store)
    yield finding
    yield from examine_service(store, config)
    yield from examine_containerd(arguments.containerd, config.containerds)
