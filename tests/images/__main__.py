"""`python -m tests.images NAME…`: builds images, and prints how `oci:` notation names each."""

from __future__ import annotations

import sys
import time

from tests.images.build import Builder, BuildFailed
from tests.images.table import IMAGES


def main(names: list[str]) -> int:
    """Build the images of these names; all but torch (3 GB, minutes) where there is none."""
    unknown = [name for name in names if name not in IMAGES]
    if unknown:
        print(f"no image is called {', '.join(unknown)}; there are {', '.join(IMAGES)}", file=sys.stderr)
        return 2
    builder = Builder()
    for name in names or [name for name in IMAGES if name != "torch"]:
        start = time.monotonic()
        try:
            reference = builder.build(name, lambda line: print("  " + line, flush=True))
        except BuildFailed as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{reference} ({time.monotonic() - start:.1f} s)", flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
