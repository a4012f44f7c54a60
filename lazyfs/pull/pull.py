"""Pulls an image into containerd by its own services: as `ctr images pull`, but lazy layers are not fetched.

containerd before 2.1 does not pass an external snapshotter the labels that name a layer's blob; this client does. Everything else is as in
containerd's own client, so that its garbage collector, `ctr` and CRI find an image like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import trio
from google.protobuf.field_mask_pb2 import FieldMask

from lazyfs.api.services.images.v1 import images_pb2
from lazyfs.api.types import descriptor_pb2
from lazyfs.errors import ContainerdFailed
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import parse_document
from lazyfs.format.platform import Platform
from lazyfs.image.image import Image, resolve_image
from lazyfs.pull.containerd import Containerd
from lazyfs.pull.content import Content, Labels
from lazyfs.pull.documents import Documents
from lazyfs.pull.downloads import Downloads, Progress
from lazyfs.pull.labels import MANAGED, chain_ids, children_labels, not_lazy, snapshot_reference, source_label
from lazyfs.pull.layers import Layers, PulledLayer
from lazyfs.pull.lease import leased
from lazyfs.source.protocol import ImageSource
from lazyfs.source.reference import Reference

_CRI: Final = "k8s.io"
"""CRI's namespace."""
_TRIES: Final = 3


class PullRequest(NamedTuple):
    """What to pull."""

    reference: Reference
    platform: Platform
    snapshotter: str
    complete: bool
    """Also fetch the blobs of lazy layers into the content store: export, push and check need them."""


class PulledImage(NamedTuple):
    """The result of a pull."""

    name: str
    """The name of the image in containerd."""
    digest: Digest
    """Of what the reference names now: an index or a manifest."""
    manifest_digest: Digest
    layers: tuple[PulledLayer, ...]
    """The lowest first."""


async def pull(
    containerd: Containerd,
    source: ImageSource,
    order: PullRequest,
    progress: Progress,
    layer_done: Callable[[PulledLayer], None],
) -> PulledImage:
    """Pull an image. `layer_done` is called with each layer when its snapshot exists.

    Raises LazyfsError, also in groups. Cancelled or killed: what has arrived stays for a day, and the next pull resumes there.
    """
    await containerd.check_snapshotter(order.snapshotter)
    documents = Documents(source, Content(containerd))
    image = await resolve_image(documents, order.reference.selector, order.platform, None)
    for layer in image.layers:
        not_lazy(layer)  # refuse other descriptors before anything is written
    return await _Pull(containerd, source, order, documents, image).run(progress, layer_done)


class _Pull:
    """The pull of a resolved image."""

    def __init__(
        self, containerd: Containerd, source: ImageSource, order: PullRequest, documents: Documents, image: Image
    ) -> None:
        self._containerd = containerd
        self._content = Content(containerd)
        self._source = source
        self._order = order
        self._documents = documents
        self._image = image
        self._name = str(order.reference).removeprefix("docker://")

    async def run(self, progress: Progress, layer_done: Callable[[PulledLayer], None]) -> PulledImage:
        found: list[PulledLayer] = []
        async with leased(self._containerd, self._name), trio.open_nursery() as nursery:
            downloads = Downloads(self._source, self._order.reference, self._content, nursery, progress)
            layers = Layers(self._containerd, self._order.snapshotter, self._name, self._image, downloads)
            async with trio.open_nursery() as documents:
                documents.start_soon(self._keep_documents)
                await layers.download_ahead()
                for number in range(len(self._image.layers)):
                    found.append(await layers.make(number))
                    layer_done(found[-1])
            # Without its record, the image is garbage; with it, containers can start.
            await self._name_image()
            if self._order.complete:
                for layer in self._image.layers:
                    downloads.begin(layer)
        return PulledImage(self._name, self._documents.seen[0].digest, self._image.digest, tuple(found))

    async def _keep_documents(self) -> None:
        """Write index, manifest and config, with the labels that keep their children."""
        config, chain = self._image.manifest.config, chain_ids(self._image.config.diff_ids)
        of_config = snapshot_reference(self._order.snapshotter, chain[-1]) if chain else {}
        async with trio.open_nursery() as nursery:
            for document in self._documents.seen:
                parsed = parse_document(document.media_type, document.data)
                labels = self._labels(children_labels(parsed))
                nursery.start_soon(self._content.keep, parsed.media_type, document.digest, document.data, labels)
            data = self._documents.blobs[config.digest]
            nursery.start_soon(self._content.keep, config.media_type, config.digest, data, self._labels(of_config))

    def _labels(self, own: Mapping[str, str]) -> Labels:
        return lambda known: {**own, **source_label(self._order.reference, known)}

    async def _name_image(self) -> None:
        target = self._documents.seen[0]
        kind = parse_document(target.media_type, target.data).media_type
        descriptor = descriptor_pb2.Descriptor(media_type=kind, digest=target.digest, size=len(target.data))
        names, labels = [self._name], {}
        if self._containerd.namespace == _CRI:
            # CRI also finds an image by its ID and by digest; it would add those names itself to an image that it does not manage yet.
            by_digest = f"{self._order.reference.location}@{target.digest}"
            names, labels = [self._image.manifest.config.digest, self._name, by_digest], MANAGED
        for name in dict.fromkeys(names):
            await self._record(images_pb2.Image(name=name, labels=labels, target=descriptor))

    async def _record(self, image: images_pb2.Image) -> None:
        """Create an image's record, or point an existing one to this target."""
        service = self._containerd.images
        mask = FieldMask(paths=["target", *(f"labels.{key}" for key in image.labels)])
        for _ in range(_TRIES):  # another client may remove it in between
            create = images_pb2.CreateImageRequest(image=image)
            if await self._containerd.call_unless("ALREADY_EXISTS", service.Create, create) is not None:
                return
            update = images_pb2.UpdateImageRequest(image=image, update_mask=mask)
            if await self._containerd.call_unless("NOT_FOUND", service.Update, update) is not None:
                return
        raise ContainerdFailed(f"containerd says that there is an image {image.name}, and does not find it")
