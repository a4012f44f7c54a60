"""Verifies a whole image: manifest, config, every blob, every tree, every chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from lazyfs.errors import InvalidInput, show
from lazyfs.format.digest import Digest
from lazyfs.format.entry import Entry
from lazyfs.format.manifest import Descriptor, check_layer_type
from lazyfs.image.image import Image
from lazyfs.layertar.download import download
from lazyfs.source.protocol import ImageSource
from lazyfs.verify.layer import LayerFindings, verify_layer
from lazyfs.vfs.tree import Tree


class ImageFindings(NamedTuple):
    """The result. An image without problems looks the same however it is unpacked or mounted."""

    layers: tuple[LayerFindings, ...]
    problems: tuple[str, ...]
    """The problems of the image as a whole and of all its layers."""

    @property
    def lazy(self) -> bool:
        """Whether every layer has a TOC whose digest is in the manifest."""
        return all(layer.lazy for layer in self.layers)


async def verify_image(source: ImageSource, image: Image, progress: Callable[[int], None]) -> ImageFindings:
    """Download and verify every layer, one after the other; `progress` gets the count of blob bytes of each step.

    Raises SourceError if a layer cannot be fetched. Cancelled: nothing is left behind.
    """
    layers = []
    for descriptor, diff_id in zip(image.layers, image.config.diff_ids, strict=True):
        layers.append(await _verify_layer(source, descriptor, diff_id, progress))
    problems = [problem for layer in layers for problem in layer.problems]
    if not problems:
        problems += await trio.to_thread.run_sync(_shadowed, [layer.entries for layer in layers])
    return ImageFindings(tuple(layers), tuple(problems))


async def _verify_layer(
    source: ImageSource, descriptor: Descriptor, diff_id: Digest, progress: Callable[[int], None]
) -> LayerFindings:
    check_layer_type(descriptor)
    try:
        spool = await download(source, descriptor, diff_id, progress, keep_blob=True)
    except InvalidInput as error:
        return LayerFindings(False, (), 0, (error.message,))
    with spool:
        return await trio.to_thread.run_sync(verify_layer, spool, descriptor, trio.from_thread.check_cancelled)


def _shadowed(layers: list[tuple[Entry, ...]]) -> list[str]:
    """Finds paths through symbolic links of lower layers: runtimes unpack through the link, lazy mounts replace it by a directory."""
    return [
        f"layer {index + 1} puts files below {show(name)}, which is not a directory in the layers below:"
        " unpacking follows it, mounting lazily replaces it"
        for index, name in Tree(layers).replaced
    ]
