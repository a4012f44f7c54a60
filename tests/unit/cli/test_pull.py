"""What `lazyfs pull` refuses before it asks anybody, and what it makes of a result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lazyfs.cli import pull
from lazyfs.cli.main import main
from lazyfs.format.digest import digest_of
from lazyfs.pull.layers import PulledLayer
from lazyfs.pull.pull import Pulled

DIGEST = digest_of(b"")


def test_a_layout_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """lazyfsd, another process at another time, fetches from registries alone."""
    assert main(["pull", "oci:somewhere:v1"]) == 2
    assert "no image in a registry" in capsys.readouterr().err


def test_without_grpcio_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It is an extra: who only converts or mounts has no use for it."""
    for module in [name for name in sys.modules if name.startswith("lazyfs.pull")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert main(["pull", "python:3.12", "--address", str(tmp_path / "none"), "--store", str(tmp_path / "store")]) == 2
    assert "lazyfs[containerd]" in capsys.readouterr().err


def test_layers_that_are_not_lazy_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each at once, and how many in the end."""
    layers = tuple(PulledLayer(DIGEST, 5, DIGEST, reason) for reason in ("", "was not converted", ""))
    with pull._Display() as display:
        for layer in layers:
            display.layer(layer.report())
    assert capsys.readouterr().err == f"lazyfs: layer {DIGEST} was not converted\n"
    assert pull._describe(Pulled("host/repo:v1", DIGEST, DIGEST, layers).report()) == f"host/repo:v1 {DIGEST}: 2 of 3 layers lazy"
