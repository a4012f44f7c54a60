"""The report of a conversion: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from converter.layers import Finished
from lazyfs.format.digest import Digest


class LayerReport(msgspec.Struct, frozen=True):
    """One layer. Sizes in bytes."""

    source_digest: Digest
    source_size: int
    digest: Digest
    size: int
    diff_id: Digest
    toc_digest: Digest
    uncompressed_size: int
    entries: int
    chunks: int
    kept: bool
    seconds: float


class ImageReport(msgspec.Struct, frozen=True):
    """One image for one platform."""

    platform: str
    source_digest: Digest
    digest: Digest
    layers: tuple[LayerReport, ...]
    not_found: tuple[str, ...]
    """Prioritised paths that no layer shows."""
    left_out: tuple[str, ...] = ()
    """What the new layers lack of the source's."""


class Report(msgspec.Struct, frozen=True):
    """The whole conversion."""

    source: str
    destination: str
    source_digest: Digest
    digest: Digest
    """The digest of what is now at the destination."""
    images: tuple[ImageReport, ...]
    lost: tuple[str, ...]
    """References to the source that the destination cannot have (lost.py)."""
    seconds: float


def layer_report(finished: Finished) -> LayerReport:
    """The figures of one layer."""
    old, new, seconds, _ = finished
    return LayerReport(
        old.descriptor.digest,
        old.descriptor.size,
        new.digest,
        new.size,
        new.diff_id,
        new.toc_digest,
        new.tar_size,
        new.entries,
        new.chunks,
        new.kept,
        round(seconds, 3),
    )


def table(report: Report) -> Iterator[str]:
    """The lines for people."""
    for image in report.images:
        yield f"{image.platform or 'image'}  {image.digest}"
        yield f"  {'layer':12}  {'source MB':>9}  {'MB':>9}  {'ratio':>6}  {'entries':>8}  {'chunks':>8}  {'seconds':>7}"
        for layer in image.layers:
            yield _row(layer.source_digest[7:19], [layer], "  kept" if layer.kept else "")
        if len(image.layers) != 1:
            yield _row("all", image.layers, "")
        if image.not_found:
            yield f"  {len(image.not_found)} prioritised paths are in no layer:"
            yield from (f"    {path}" for path in image.not_found)
    for loss in report.lost:
        yield f"not in the new image: {loss}"
    yield f"{report.destination}  {report.digest}  {report.seconds:.1f} s"


def _row(name: str, layers: Sequence[LayerReport], remark: str) -> str:
    before = sum(layer.source_size for layer in layers)
    after = sum(layer.size for layer in layers)
    ratio = f"{after / before:.3f}" if before else "-"
    counts = f"{sum(layer.entries for layer in layers):8}  {sum(layer.chunks for layer in layers):8}"
    seconds = sum(layer.seconds for layer in layers)
    return f"  {name:12}  {before / 1e6:9.1f}  {after / 1e6:9.1f}  {ratio:>6}  {counts}  {seconds:7.1f}{remark}"
