"""Write a bundle and run it, in a process of its own: `python -m tests.run_bundle DIRECTORY CONFIG OPTIONS`, the last two JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lazyfs.bundle.bundle import write_bundle
from lazyfs.bundle.runc import run_bundle
from lazyfs.bundle.settings import read_settings
from lazyfs.bundle.signals import hold_signals


def main(directory: Path, config: str, options: dict[str, str]) -> int:
    write_bundle(
        directory,
        read_settings(config, user=options.get("user", "")),
        hostname="of-the-test",
        net="host" if options.get("net") == "host" else "none",
        terminal=os.get_terminal_size(0) if "terminal" in options else None,
        new_privileges="new_privileges" in options,
    )
    with hold_signals() as mask:
        return run_bundle(directory, f"lazyfs-test-{os.getpid()}", mask)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
