"""Layers of real images: what overlayfs leaves becomes what a layer's tar says."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.images.layer import LayerFile, decimal, write_layer


def entries(upper: Path, *, exact_times: bool = False) -> dict[str, tarfile.TarInfo]:
    """The tar of a directory, read back."""
    target = io.BytesIO()
    file = LayerFile(target)
    write_layer(upper, file, exact_times=exact_times)
    blob = file.finish()
    assert blob.size == len(target.getvalue())
    target.seek(0)
    with tarfile.open(fileobj=target, encoding="utf-8", errors="surrogateescape") as tar:
        return {member.name: member for member in tar}


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [(0, "0.000000000"), (-1, "-0.000000001"), (-4_750_000_001, "-4.750000001"), (1_500_000_000, "1.500000000")],
)
def test_decimal_is_exact_on_both_sides_of_1970(time_ns: int, text: str) -> None:
    """A PAX record's sign belongs to the whole number, fraction included."""
    assert decimal(time_ns) == text


@pytest.mark.root
def test_overlay_marks_become_whiteouts(tmp_path: Path) -> None:
    """A character device 0:0 becomes `.wh.NAME`, an opaque directory gets its marker, and no overlay xattr survives."""
    (tmp_path / "dir").mkdir()
    os.setxattr(tmp_path / "dir", "trusted.overlay.opaque", b"y")
    os.mknod(tmp_path / "dir" / "gone", 0o20000, os.makedev(0, 0))
    found = entries(tmp_path)
    assert list(found) == ["dir", "dir/.wh..wh..opq", "dir/.wh.gone"]
    assert not found["dir"].pax_headers


def test_hard_links_bytes_and_times_survive(tmp_path: Path) -> None:
    """A second name is a link to the first, names need not be UTF-8, nanoseconds are kept where asked for, whole seconds elsewhere."""
    (tmp_path / "a").write_bytes(b"data")
    os.link(tmp_path / "a", tmp_path / os.fsdecode(b"b-\xff"))
    os.utime(tmp_path / "a", ns=(0, -1_500_000_000))
    found = entries(tmp_path, exact_times=True)
    link = found[os.fsdecode(b"b-\xff")]
    assert (link.type, link.linkname) == (tarfile.LNKTYPE, "a")
    assert found["a"].pax_headers["mtime"] == "-1.500000000"
    assert entries(tmp_path)["a"].pax_headers["mtime"] == "-2"
