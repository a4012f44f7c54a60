"""What `lazyfs mount` makes of the reports of the mount's process, and what it refuses at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.cli import mount
from lazyfs.cli.main import main
from lazyfs.errors import MountFailed


def test_waiting_ends_with_the_word_that_everything_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    """Trouble on the way is told once, and is no failure."""
    reports = [
        {"left": 5, "total": 10, "trouble": "the registry is away"},
        {"left": 5, "total": 10, "trouble": "the registry is away"},
        {"left": 0, "total": 1, "trouble": "", "done": True},
    ]
    mount._show_progress(iter(reports), Path("/mnt"))
    assert capsys.readouterr().err.count("the registry is away") == 1


def test_a_process_that_ends_before_everything_is_here_is_a_failure() -> None:
    """Killed or unmounted: `--background wait` promised completeness."""
    with pytest.raises(MountFailed, match="/mnt has ended before"):
        mount._show_progress(iter([{"left": 0, "total": 10, "trouble": ""}]), Path("/mnt"))


@pytest.mark.parametrize(
    "options", [["oci:{0}/image", "{0}", "--store", "/nowhere"], ["oci:/nowhere", "{0}", "--store", "{0}/s"]]
)
def test_a_mount_does_not_hide_what_it_reads_from(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mount's process would wait for itself."""
    assert main(["mount", *(option.format(tmp_path) for option in options)]) == MountFailed.exit_code
    assert "would hide" in capsys.readouterr().err
