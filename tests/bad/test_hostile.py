"""Small images that would cost much: refused with the bound that they break, for at most 300 MB and 10 s of processor time.

Each runs in the process that does the work, by itself; and twenty at once in the one process that all mounts of a store share, where an
honest image comes through. The limits are the kernel's: whoever exceeds them is killed, or has had more memory than it may.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad import hostile, make
from tests.bad.limited import CPU_S, PEAK, Cost, run_lazyfs, run_limited
from tests.bad.oci import Oci

WORDS = {
    "toc_of_negative_size": "the TOC has -256 bytes, which is not a size",
    "toc_of_blanks": "the TOC has 262144026 bytes, more than",
    "toc_over_a_hole": "where the TOC should be there is the tar entry",
    "toc_that_is_stored": "not the JSON that the format asks for",
    "slices": "its files have more than 268435456 bytes together",
    "repeated_chunks": "its files have more than 268435456 bytes together",
    "xattrs": "the TOC has an entry of 10930132 bytes, more than 4194304",
    "toc_entries": "its names, links and attributes, with 512 bytes for each entry, take more than",
    "toc_numbers": "more than 134",
    "toc_strings": "has a component of more than 255 bytes",
    "toc_depth": "it implies more directories than",
    "toc_chunks": "take more than",
    "sparse": "has holes and would become 10000000 bytes: its layer's sparse files may be filled up with 268435456",
    "pax_attributes": "take more than",
    "pax_headers": "take more than",
    "pax_records": "take more than",
    "long_names": "more than 4095 bytes",
    "long_links": "take more than",
    "tar_entries": "take more than",
    "whiteouts": "take more than",
    "link_chains": "its names and links take more than 10000000 steps to follow",
    "implied": "take more than",
    "empty_members": "",
    "zstd_windows": "unpacks to sha256:",
    "zstd_frames": "unpacks to sha256:",
}
"""What each is told. The empty members are a sound layer of nothing: it costs little, and is taken."""
SOME = (hostile.slices, hostile.toc_of_negative_size, hostile.toc_entries, hostile.sparse, hostile.link_chains, hostile.implied)
SOME += (hostile.zstd_windows,) * 3
"""For the daemon, in an ordinary run."""


def check(cost: Cost, cpu: float = CPU_S) -> None:
    assert cost.code >= 0, f"killed by signal {-cost.code} after {cost.cpu:.1f} s: {cost.said[-2000:]}"
    assert "Traceback" not in cost.said, cost.said[-4000:]
    assert cost.peak <= PEAK and cost.cpu <= cpu, cost


@pytest.mark.parametrize("case", [*hostile.TOCS, *hostile.LAYERS], ids=lambda case: case.__name__)
def test_one_of_them(case: Callable[[Oci], object], tmp_path: Path) -> None:
    """The command that meets it ends with the bound in its message."""
    oci = Oci(tmp_path / "src")
    case(oci)
    image = f"oci:{oci.path}:v1"
    command = (
        ("ls", image, "--store", tmp_path / "store") if case in hostile.TOCS else ("convert", image, f"oci:{tmp_path}/dst:v1")
    )
    cost = run_lazyfs(*command)
    check(cost)
    words = WORDS[case.__name__]
    assert cost.code == (3 if words else 0) and words in cost.said, cost.said[-2000:]
    if words:
        assert oci.layer in cost.said and cost.said.count("\n") == 1


def at_once(cases: list[Callable[[Oci], object]], tmp_path: Path, cpu: int) -> list[str]:
    """What each image is refused with, and an honest one last, in one process that has all of them."""
    layouts = []
    for number, case in enumerate((*cases, make.sound)):
        oci = Oci(tmp_path / f"src{number}")
        oci.number = number
        case(oci)
        layouts.append(oci.path)
    cost = run_limited(sys.executable, "-m", "tests.bad.daemon_of_many", tmp_path / "store", *layouts, cpu=cpu)
    check(cost, cpu)
    return [json.loads(line) for line in cost.said.splitlines()[-len(layouts) :]]


def test_several_in_one_daemon(tmp_path: Path) -> None:
    """All are refused, the honest one is not, and together they take no more memory than one may."""
    refusals = at_once(list(SOME), tmp_path, CPU_S * len(SOME))
    for case, refusal in zip(SOME, refusals, strict=False):
        assert WORDS[case.__name__] in refusal
    assert len(refusals) == len(SOME) + 1 and not refusals[-1]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*hostile.TOCS, *hostile.LAYERS], ids=lambda case: case.__name__)
def test_twenty_in_one_daemon(case: Callable[[Oci], object], tmp_path: Path) -> None:
    """Twenty images that are alike. Layers that are fetched whole differ: of one layer there is never more than one copy under way."""
    refusals = at_once([case] * 20, tmp_path, 20 * CPU_S)
    assert all(WORDS[case.__name__] in refusal for refusal in refusals[:20]) and not refusals[-1]
