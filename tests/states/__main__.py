"""`python -m tests.states`: keep a state directory with the formats of today."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.states.make import make

with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="lfs-") as folder:
    print(make(Path(folder)))
