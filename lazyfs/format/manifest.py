"""Manifests, indexes and image configs: OCI (image-spec 1.1) and Docker's schema 2, which says the same under other names.

The input is hostile until its bounds have been checked, and images carry fields that lazyfs does not know. So every value keeps
the JSON object that it was read from (`raw`), and code that rewrites an image changes a copy of that object.

Documents that both containerd and skopeo accept are accepted (format/foreign_json.py): a null field is absent, the case of names
does not matter, and the carrier's media type takes precedence. A document that is both an index and a manifest is refused, because
two readers would see two images under one digest (CVE-2021-41190).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from lazyfs.errors import InvalidManifest, show
from lazyfs.format.digest import Digest, digest_of, is_digest, parse_digest
from lazyfs.format.foreign_json import decode, fields
from lazyfs.format.platform import Platform, normal, runnable

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_TAR: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
DOCUMENT_TYPES: Final = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
"""The types that can be read, preferred first, for an Accept header."""

REFERENCE_TYPE: Final = "vnd.docker.reference.type"
REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"
"""BuildKit's annotations on an index entry that describes an image instead of being one (an attestation)."""

MAX_DOCUMENT: Final = 4 << 20
"""Bytes of a manifest or index, as in the distribution specification."""
MAX_CONFIG: Final = 8 << 20
MAX_DESCRIPTORS: Final = 1000
"""Layers of an image."""
MAX_ENTRIES: Final = 100_000
"""Entries of an index. A layout may hold thousands of images. At this limit, the parsed entries take about 100 MB."""
MAX_SIZE: Final = (1 << 63) - 1
MAX_URLS: Final = 8
"""URLs of a blob that are asked; any that follow are ignored."""

_EMPTY: Final = digest_of(b"")
_SCHEMA_1_TYPES: Final = frozenset(
    {"application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws"}
)

_KNOWN: Final = INDEX_TYPES | MANIFEST_TYPES
_MAY_BE_IMAGE: Final = _KNOWN | {""}
_DOCUMENT: Final = ("mediaType", "config", "layers", "manifests", "fsLayers", "annotations")
_DESCRIPTOR: Final = ("mediaType", "digest", "size", "annotations", "platform", "urls")
_CONFIG: Final = ("rootfs", "architecture", "os", "variant")

_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_LAYER_TYPES: Final = frozenset(
    {
        OCI_LAYER_GZIP,
        OCI_LAYER_ZSTD,
        OCI_LAYER_TAR,
        DOCKER_LAYER_GZIP,
        DOCKER_LAYER_ZSTD,
        DOCKER_LAYER_TAR,
        _FOREIGN,
        _FOREIGN + "+gzip",
        _FOREIGN + "+zstd",
        _DOCKER_FOREIGN,
        _DOCKER_FOREIGN + ".gzip",
    }
)
"""Media types that may be a tar. The compression that they name is ignored: the first bytes decide (layertar/spool.py)."""


class Descriptor(msgspec.Struct, frozen=True):
    """A descriptor: what a document says about another document or blob."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str]
    platform: Platform | None
    raw: Mapping[str, Any]
    """The JSON object as found. Never changed in place."""
    urls: tuple[str, ...] = ()
    """Other http or https locations of the bytes, at most MAX_URLS."""


class Manifest(msgspec.Struct, frozen=True):
    """One image for one platform."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """The lowest first."""
    annotations: Mapping[str, str]
    raw: Mapping[str, Any]
    data: bytes
    """The bytes that the digest covers."""


class Unusable(msgspec.Struct, frozen=True):
    """An entry of an index without a sha256 digest."""

    reason: str
    annotations: Mapping[str, str]


class Index(msgspec.Struct, frozen=True):
    """An index: images for several platforms, and entries that describe them."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    raw: Mapping[str, Any]
    data: bytes
    unusable: tuple[Unusable, ...] = ()
    """Entries that cannot be looked up. They do not affect the others."""


class ImageConfig(msgspec.Struct, frozen=True):
    """The parts of an image config about layers. The rest may be megabytes, and a daemon holds many images."""

    diff_ids: tuple[Digest, ...]
    """sha256 of each layer's uncompressed tar, the lowest first."""
    architecture: str
    os: str
    variant: str

    @property
    def platform(self) -> Platform:
        return normal(self.os, self.architecture, self.variant)


def parse_document(media_type: str, data: bytes, what: str = "the document", limit: int = MAX_DOCUMENT) -> Manifest | Index:
    """The manifest or index in `data`.

    `media_type` is the carrier's (a Content-Type, a descriptor). If that is empty or generic, the document's own field counts,
    and then its content. `what` names it in errors; `limit` is its largest size in bytes. Raises InvalidManifest.
    """
    if len(data) > limit:
        raise InvalidManifest(f"{what} has {len(data)} bytes, over the limit of {limit}")
    raw = _json_object(data, what)
    found = fields(raw, _DOCUMENT)
    kind = _document_type(media_type.partition(";")[0].strip().lower(), found, what)
    annotations = _annotations(found, what)
    if kind in INDEX_TYPES:
        entries, unusable = _entries(found, what)
        return Index(kind, entries, annotations, raw, data, unusable)
    config = _descriptor(found.get("config"), f"the config of {what}")
    layers = tuple(_descriptor(*item) for item in _listed(found, "layers", MAX_DESCRIPTORS, what))
    for number, layer in enumerate(layers):
        if not layer.size and layer.digest != _EMPTY:
            raise InvalidManifest(f"the size of layers[{number}] of {what} is missing, or 0 for what is not empty")
    return Manifest(kind, config, layers, annotations, raw, data)


def parse_config(data: bytes, what: str) -> ImageConfig:
    """The image config in `data`; `what` names it in errors. Raises InvalidManifest, also for the config of something that is not an image."""
    raw = _json_object(data, what)
    found = fields(raw, _CONFIG)
    rootfs = found.get("rootfs")
    if not isinstance(rootfs, dict):
        raise InvalidManifest(
            f"{what} is not an image config: it has no rootfs",
            hint="The reference names something other than a container image (a Helm chart, a wasm module, a signature)",
        )
    diff_ids = fields(rootfs, ("diff_ids",)).get("diff_ids", [])  # absent: the image has no layers
    if not isinstance(diff_ids, list):
        raise InvalidManifest(f"the diff_ids of {what} are no list")
    if len(diff_ids) > MAX_DESCRIPTORS:
        raise InvalidManifest(f"{what} lists {len(diff_ids)} diff IDs, over the limit of {MAX_DESCRIPTORS}")
    return ImageConfig(
        tuple(parse_digest(diff_id, f"diff ID {number} of {what}") for number, diff_id in enumerate(diff_ids)),
        _text(found, "architecture", what),
        _text(found, "os", what),
        _text(found, "variant", what),
    )


def check_layer_type(layer: Descriptor) -> None:
    """Raise InvalidManifest, with the reason, if the layer's media type is not a supported tar."""
    media_type = layer.media_type
    if media_type in _LAYER_TYPES:
        return
    name = f"layer {layer.digest} ({show(media_type)})"
    if media_type.endswith("+encrypted"):
        raise InvalidManifest(
            f"{name} is encrypted", hint="Decrypt the image first, for example with skopeo copy --decryption-key"
        )
    raise InvalidManifest(
        f"{name} is not a layer of a container image",
        hint="The reference names something else that a registry can hold (a Helm chart, a wasm module, a signature)",
    )


def is_attestation(entry: Descriptor) -> bool:
    """Whether an index entry describes an image instead of being one. BuildKit marks it with an annotation or by its platform."""
    platform = entry.platform
    return REFERENCE_TYPE in entry.annotations or (platform is not None and platform.os == platform.architecture == "unknown")


def is_image(manifest: Manifest) -> bool:
    """Whether a manifest has a layer, or at least the config, of a container image. Charts and signatures do not."""
    if manifest.layers:
        return any(layer.media_type in _LAYER_TYPES for layer in manifest.layers)
    return manifest.config.media_type in {OCI_CONFIG, DOCKER_CONFIG}


def candidates(index: Index, platform: Platform) -> list[Descriptor]:
    """The entries that may hold an image for `platform`, best first.

    Entries for the same variant, then for older ones; then those without a platform: only their config names it, or they
    are indexes. Artifacts come after images (a SOCI index has the platform of its image). Entries of media types other than
    manifests and indexes are left out.
    """
    entries = [entry for entry in index.manifests if not is_attestation(entry) and entry.media_type in _MAY_BE_IMAGE]
    entries.sort(key=lambda entry: bool(fields(entry.raw, ("artifactType",))))
    found = [entry for wanted in runnable(platform) for entry in entries if entry.platform == wanted]
    return found + [entry for entry in entries if entry.platform is None]


def _document_type(carried: str, found: Mapping[str, Any], what: str) -> str:
    own = _text(found, "mediaType", what)
    if carried in _SCHEMA_1_TYPES or own in _SCHEMA_1_TYPES or ("fsLayers" in found and "layers" not in found):
        raise InvalidManifest(
            f"{what} is a Docker schema 1 manifest, which is not supported",
            hint="Pull and push it once with a current docker or skopeo: that rewrites it as schema 2",
        )
    if "fsLayers" in found:
        raise InvalidManifest(f"{what} is a manifest of schema 1 and of schema 2 at once, so it has no single meaning")
    is_index, is_manifest = "manifests" in found, "layers" in found or "config" in found
    if is_index and is_manifest:
        raise InvalidManifest(f"{what} is an index and a manifest at once, so it has no single meaning")
    if carried in _KNOWN and own in _KNOWN and (carried in INDEX_TYPES) != (own in INDEX_TYPES):
        raise InvalidManifest(f"{what} is served as {carried} but says it is {own}")
    kind = next((kind for kind in (carried, own) if kind in _KNOWN), "")
    if not kind:
        if own and carried:
            raise InvalidManifest(f"{what} is a {show(own)}, which is neither an image manifest nor an index")
        kind = OCI_INDEX if is_index else OCI_MANIFEST
    # A manifest without layers and an index without manifests are empty: Go writes them so, or as null.
    if (is_index and kind in MANIFEST_TYPES) or (is_manifest and kind in INDEX_TYPES):
        raise InvalidManifest(f"{what} is a {kind}, and holds what only the other of manifest and index does")
    return kind


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        raw = decode(data)
    except msgspec.DecodeError as error:
        raise InvalidManifest(f"{what} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidManifest(f"{what} is JSON, but no object")
    return raw


def _entries(found: Mapping[str, Any], what: str) -> tuple[tuple[Descriptor, ...], tuple[Unusable, ...]]:
    entries: list[Descriptor] = []
    unusable: list[Unusable] = []
    for raw, name in _listed(found, "manifests", MAX_ENTRIES, what):
        held = fields(raw, _DESCRIPTOR) if isinstance(raw, dict) else {}
        digest = held.get("digest")
        if isinstance(digest, str) and not is_digest(digest):
            reason = f"the digest of {name} is {show(digest)}, which is not a sha256 digest"
            unusable.append(Unusable(reason, _annotations(held, name)))
        else:
            entries.append(_descriptor(raw, name))
    return tuple(entries), tuple(unusable)


def _listed(found: Mapping[str, Any], key: str, limit: int, what: str) -> Iterator[tuple[object, str]]:
    """The items of a list, each with a name for errors."""
    listed = found.get(key, [])
    if not isinstance(listed, list):
        raise InvalidManifest(f"{key!r} of {what} is not a list")
    if len(listed) > limit:
        raise InvalidManifest(f"{what} has {len(listed)} {key}, over the limit of {limit}")
    return ((item, f"{key}[{number}] of {what}") for number, item in enumerate(listed))


def _descriptor(raw: object, what: str) -> Descriptor:
    if not isinstance(raw, dict):
        raise InvalidManifest(f"{what} is missing or no object")
    found = fields(raw, _DESCRIPTOR)
    media_type, annotations = _text(found, "mediaType", what), _annotations(found, what)
    platform = _platform(found.get("platform"), f"the platform of {what}")
    size = found.get("size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise InvalidManifest(f"the size of {what} is {show(size)}, which is not a count of bytes")
    digest = parse_digest(found.get("digest"), f"the digest of {what}")
    return Descriptor(media_type, digest, size, annotations, platform, raw, _urls(found))


def _urls(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The URLs that can be followed. All else is ignored: the blob may be where the document is."""
    listed = found.get("urls")
    if not isinstance(listed, list):
        return ()
    usable = (url for url in listed if isinstance(url, str) and url.lower().startswith(("http://", "https://")))
    return tuple(islice(usable, MAX_URLS))


def _platform(raw: object, what: str) -> Platform | None:
    """The platform; None if it is absent or empty."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise InvalidManifest(f"{what} is not an object")
    found = fields(raw, Platform._fields)
    named = normal(*(_text(found, key, what) for key in Platform._fields))
    return named if named.os or named.architecture else None


def _annotations(found: Mapping[str, Any], what: str) -> Mapping[str, str]:
    annotations = found.get("annotations", {})
    if not isinstance(annotations, dict):
        raise InvalidManifest(f"the annotations of {what} are no object")
    for name, value in annotations.items():
        if value is not None and not isinstance(value, str):
            raise InvalidManifest(f"the annotation {show(name)} of {what} is {show(value)}, which is not text")
    return {name: value for name, value in annotations.items() if value is not None}


def _text(found: Mapping[str, Any], key: str, what: str) -> str:
    value = found.get(key, "")
    if not isinstance(value, str):
        raise InvalidManifest(f"{key!r} of {what} is {show(value)}, which is not text")
    return value
