"""Bars, where there is a terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from converter.progress import Progress


def test_nothing_is_shown_and_nothing_imported_without_a_terminal() -> None:
    """rich costs a tenth of a second, which a script does not pay."""
    program = (
        "import sys\nfrom converter.progress import Progress\n"
        "with Progress(False) as progress: progress.phase('layer', 'fetch', 5)(5)\n"
        "assert 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == done.stderr == b""


def test_a_layer_has_one_bar_for_all_it_goes_through(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar restarts with each phase, and its text names the phase."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(True) as progress:
        progress.phase("  1 abc", "fetch", 100)(100)
        step = progress.phase("  1 abc", "convert", 1000)
        step(600)
        step(-100)
        progress.phase("  2 def", "fetch", 10)
    said = capsys.readouterr().err
    assert "1 abc convert" in said
    assert "2 def fetch" in said
    assert "500/1,000" in said or "0.5/1.0 kB" in said
