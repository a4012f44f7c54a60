"""What hostile images cost before they are refused: each of them (tests/bad/hostile.py) alone, and twenty at once in one process.

Alone in the command that meets it, `ls` for a TOC and `convert` for a layer; twenty at once as lazyfsd has them, without a mount. An
image that is not refused costs what it costs to serve it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.figure import Bar, Figure
from bench.place import Place
from tests.bad import hostile
from tests.bad.limited import CPU_S, PEAK, Cost, run_lazyfs, run_limited
from tests.bad.oci import Oci

AT_ONCE = 20


def measure(place: Place) -> list[Figure]:
    """Peak of memory, and processor time an image."""
    figures = []
    for case in (*hostile.TOCS, *hostile.LAYERS):
        place.say(f"hostile: {case.__name__}")
        with tempfile.TemporaryDirectory(prefix="lazyfs-hostile-", dir=place.new_folder()) as folder:
            alone, together = _alone(case, Path(folder)), _together(case, Path(folder))
        figures += [
            Figure(f"{case.__name__}, peak", "MB", (alone.peak / 1e6,), Bar("<=", PEAK / 1e6)),
            Figure(f"{case.__name__}, CPU", "s", (alone.cpu,), Bar("<=", CPU_S)),
            Figure(f"{case.__name__}, {AT_ONCE} at once, peak", "MB", (together.peak / 1e6,), Bar("<=", PEAK / 1e6)),
            Figure(f"{case.__name__}, {AT_ONCE} at once, CPU an image", "s", (together.cpu / AT_ONCE,), Bar("<=", CPU_S)),
        ]
    return figures


def _alone(case: Callable[[Oci], object], folder: Path) -> Cost:
    oci = Oci(folder / "alone")
    case(oci)
    image = f"oci:{oci.path}:v1"
    if case in hostile.TOCS:
        return run_lazyfs("ls", image, "--store", folder / "store", cpu=60)
    return run_lazyfs("convert", image, f"oci:{folder}/dst:v1", cpu=60)


def _together(case: Callable[[Oci], object], folder: Path) -> Cost:
    layouts = []
    for number in range(AT_ONCE):
        oci = Oci(folder / str(number))
        case(oci)
        layouts.append(oci.path)
    store = folder / "store-of-many"
    return run_limited(sys.executable, "-m", "tests.bad.daemon_of_many", store, *layouts, cpu=AT_ONCE * 60)
