"""What `lazyfs mount` makes of the reports of the mount's process, and what it refuses at once."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lazyfs.cli import mount
from lazyfs.cli.main import main
from lazyfs.errors import MountFailed
from lazyfs.reports.results import PortableResult
from lazyfs.reports.steps import Note, Progress

MOUNTED = PortableResult("host/repo:v1")
WAITING = argparse.Namespace(json=False, background="wait")


def test_waiting_ends_with_the_word_that_everything_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Trouble during the wait is printed once, and is not a failure."""
    trouble = Progress("fetching", 5, 10, "the registry is away")
    assert mount._follow(0, iter([Note("a layer is fetched whole"), MOUNTED, trouble, trouble, MOUNTED]), tmp_path, WAITING) == 0
    assert capsys.readouterr().err.splitlines() == [
        "lazyfs: a layer is fetched whole",
        "lazyfs: the registry is away; trying again",
    ]


def test_a_process_that_ends_before_everything_is_here_is_a_failure(tmp_path: Path) -> None:
    """Killed or unmounted: `--background wait` promised completeness."""
    with pytest.raises(MountFailed, match=f"{tmp_path} was unmounted before"):
        mount._follow(0, iter([MOUNTED, Progress("fetching", 0, 10)]), tmp_path, WAITING)


@pytest.mark.parametrize(
    "options", [["oci:{0}/image", "{0}", "--store", "/nowhere"], ["oci:/nowhere", "{0}", "--store", "{0}/s"]]
)
def test_a_mount_does_not_hide_what_it_reads_from(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mount's process would wait for itself."""
    assert main(["mount", *(option.format(tmp_path) for option in options)]) == MountFailed.exit_code
    assert "would hide" in capsys.readouterr().err
