"""From references to sources and sinks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.errors import UsageError
from lazyfs.registry.access import AccessOptions
from lazyfs.source.open import open_sink, open_source
from lazyfs.source.reference import parse_reference


async def test_each_transport_has_its_source(tmp_path: Path) -> None:
    """Names are as a user would write them."""
    for text in ("docker://localhost:5000/a/b:v1", f"oci:{tmp_path}:v1"):
        for opened in (open_source(parse_reference(text), AccessOptions()), open_sink(parse_reference(text), AccessOptions())):
            assert opened.name == text.removesuffix(":v1")
            await opened.aclose()


def test_a_destination_has_no_digest() -> None:
    """It follows from what is written there."""
    with pytest.raises(UsageError, match="names a digest"):
        open_sink(parse_reference("a.b/c@sha256:" + "a" * 64), AccessOptions())


def test_a_layout_costs_no_http() -> None:
    """Reading a layout does not import httpx."""
    program = "import sys; import lazyfs.source.open; sys.exit('httpx' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
