"""One image for one platform: its config, its layers, its new manifest."""

from __future__ import annotations

from typing import NamedTuple

from converter.layers import Line, OldLayer, convert_layers
from converter.report import ImageReport, layer_report
from converter.rewrite import rewrite_config, rewrite_manifest
from lazyfs.errors import InvalidManifest
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import MAX_CONFIG, ImageConfig, Manifest, check_layer_type, parse_config
from lazyfs.source.protocol import Document, ImageSource


class OldImage(NamedTuple):
    """An image of the source, with its documents read and its layers of types that can be converted."""

    digest: Digest
    manifest: Manifest
    config: ImageConfig
    config_data: bytes
    layers: tuple[OldLayer, ...]


class NewImage(NamedTuple):
    """A converted image. Its blobs are being sent; its manifest is yet to be written."""

    document: Document
    report: ImageReport


async def read_image(source: ImageSource, digest: Digest, manifest: Manifest) -> OldImage:
    """Read the config, and check that it fits the manifest. Raises LazyfsError."""
    for layer in manifest.layers:
        check_layer_type(layer)  # blobs that are not layers are found before anything is fetched
    data = await source.small_blob(manifest.config.digest, MAX_CONFIG)
    config = parse_config(data, f"the config of {source.name}@{digest}")
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidManifest(
            f"{source.name}@{digest} has {len(manifest.layers)} layers, and its config {len(config.diff_ids)} diff IDs",
            hint="The image was built or copied wrongly: no runtime would unpack it",
        )
    layers = tuple(OldLayer(*facts) for facts in zip(manifest.layers, config.diff_ids, strict=True))
    return OldImage(digest, manifest, config, data, layers)


async def convert_image(line: Line, image: OldImage, last: bool) -> NewImage:
    """Convert the layers, and begin to send them and the new config. See `convert_layers` for `last` and errors."""
    finished, missing = await convert_layers(line, image.layers, last)
    layers = [one.new for one in finished]
    config = rewrite_config(image.config, image.config_data, layers)
    line.uploads.send_bytes(config)
    document = rewrite_manifest(image.manifest, image.digest, config, layers)
    not_found = tuple(path.decode("utf-8", "backslashreplace") for path in missing)
    reports = tuple(layer_report(one) for one in finished)
    left_out = tuple(remark for one in finished for remark in one.left_out)
    return NewImage(
        document, ImageReport(str(image.config.platform), image.digest, document.digest, reports, not_found, left_out)
    )
