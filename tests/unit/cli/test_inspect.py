"""What `lazyfs inspect` prints."""

from __future__ import annotations

import pytest

from lazyfs.cli import inspect


def test_reasons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A layer's own words may look like markup: neither an error of the printer's nor a gap in the reason."""
    layer = {"digest": "sha256:1", "size": 1, "format": "broken", "lazy": False, "reason": "'[/usr]' and '[b]' are no names"}
    inspect._print_table({"image": "oci:x", "platform": "linux/amd64", "size": 1, "layers": [layer]})
    assert "'[/usr]' and '[b]' are no names" in capsys.readouterr().out
