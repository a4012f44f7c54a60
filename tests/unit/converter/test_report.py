"""What is printed at the end."""

from __future__ import annotations

from converter.layer import NewLayer
from converter.layers import Finished, OldLayer
from converter.report import ImageReport, Report, layer_report, table
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor

OLD, NEW, OTHER = digest_of(b"old"), digest_of(b"new"), digest_of(b"other")


def finished(size: int, new_size: int, kept: bool, seconds: float) -> Finished:
    descriptor = Descriptor(OCI_LAYER_GZIP, OLD, size, {}, None, {})
    return Finished(OldLayer(descriptor, OLD), NewLayer(NEW, new_size, OTHER, OTHER, 5, 10, 20, kept), seconds)


def report(*layers: Finished, not_found: tuple[str, ...] = (), lost: tuple[str, ...] = ()) -> Report:
    image = ImageReport("linux/amd64", OLD, NEW, tuple(map(layer_report, layers)), not_found)
    return Report("oci:a", "oci:b:v1", OLD, NEW, (image,), lost, 3.25)


def test_the_table_has_a_line_a_layer_and_a_sum() -> None:
    """Sizes, their ratio, entries, chunks, seconds; what was kept is marked."""
    lines = list(table(report(finished(10_000_000, 11_000_000, False, 1.5), finished(30_000_000, 30_000_000, True, 0.5))))
    assert lines[0].split() == ["linux/amd64", NEW]
    assert lines[2].split() == [OLD[7:19], "10.0", "11.0", "1.100", "10", "20", "1.5"]
    assert lines[3].split() == [OLD[7:19], "30.0", "30.0", "1.000", "10", "20", "0.5", "kept"]
    assert lines[4].split() == ["all", "40.0", "41.0", "1.025", "20", "40", "2.0"]
    assert lines[-1].split() == ["oci:b:v1", NEW, "3.2", "s"]
    assert len({line.rindex(".") for line in lines[2:5]}) == 1


def test_what_is_missing_and_what_is_lost_is_named() -> None:
    """The count first; and an empty layer divides by nothing."""
    lines = list(table(report(finished(0, 100, False, 0), not_found=("a/b", "c"), lost=("a signature",))))
    assert "  2 prioritised paths are in no layer:" in lines
    assert "    a/b" in lines
    assert "not in the new image: a signature" in lines
    assert " - " in lines[2]


def test_a_layers_figures() -> None:
    """Each under its name."""
    found = layer_report(finished(1, 2, True, 1.23456))
    assert (found.source_digest, found.source_size, found.digest, found.size) == (OLD, 1, Digest(NEW), 2)
    assert (found.uncompressed_size, found.entries, found.chunks, found.kept, found.seconds) == (5, 10, 20, True, 1.235)
