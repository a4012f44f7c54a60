"""Manifests, indexes and image configs: OCI (image-spec 1.1) and Docker's schema 2, which says the same in other names.

What is parsed here is hostile until its bounds have been checked, and incomplete for ever: images carry fields that we
do not know. So every value keeps the JSON object that it was read from (`raw`), and whoever rewrites an image changes
a copy of that.

A document that can be read in two ways (an index that is a manifest as well, a header that contradicts the content) is
refused, because two readers of it would see two images under one digest (CVE-2021-41190).
"""

from __future__ import annotations

import platform as _machine
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from lazyfs.errors import InvalidManifest, NotFound, UsageError
from lazyfs.format.digest import Digest, parse_digest

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
"""What we can read, the preferred first: the value of an Accept header."""

REFERENCE_TYPE: Final = "vnd.docker.reference.type"
REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"
"""BuildKit's annotations on an index entry that is no image but speaks about one (an attestation)."""

MAX_DOCUMENT: Final = 4 << 20
"""Bytes of a manifest or index; the distribution specification's own figure."""
MAX_CONFIG: Final = 8 << 20
MAX_DESCRIPTORS: Final = 1000
MAX_SIZE: Final = (1 << 63) - 1

_SCHEMA_1_TYPES: Final = frozenset(
    {"application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws"}
)

LayerKind = Literal["gzip", "zstd", "tar"]

_LAYER_KINDS: Final[dict[str, LayerKind]] = {
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    OCI_LAYER_TAR: "tar",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_LAYER_TAR: "tar",
}


class Platform(NamedTuple):
    """Go's names for a machine, normalised: `linux/arm64` and `linux/arm64/v8` are one value."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


class Descriptor(msgspec.Struct, frozen=True):
    """What a document says about another document or blob."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str]
    platform: Platform | None
    raw: Mapping[str, Any]
    """The JSON object as found; never to be changed in place."""


class Manifest(msgspec.Struct, frozen=True):
    """One image for one platform."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """The lowest first."""
    annotations: Mapping[str, str]
    raw: Mapping[str, Any]
    data: bytes
    """The bytes that the digest is of."""


class Index(msgspec.Struct, frozen=True):
    """Images for several platforms, and what is said about them."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    raw: Mapping[str, Any]
    data: bytes


class ImageConfig(msgspec.Struct, frozen=True):
    """The parts of an image config that concern layers."""

    diff_ids: tuple[Digest, ...]
    """sha256 of each layer's uncompressed tar, the lowest first."""
    architecture: str
    os: str
    variant: str
    raw: Mapping[str, Any]

    @property
    def platform(self) -> Platform:
        return _normal(self.os, self.architecture, self.variant)


def parse_document(media_type: str, data: bytes, what: str = "the document") -> Manifest | Index:
    """The manifest or index in `data`.

    `media_type` is what its carrier says (a Content-Type, a descriptor) and may be empty or generic; the document's own
    word must not contradict it. `what` names it in errors. Raises InvalidManifest.
    """
    if len(data) > MAX_DOCUMENT:
        raise InvalidManifest(f"{what} has {len(data)} bytes, over the limit of {MAX_DOCUMENT}")
    raw = _json_object(data, what)
    carried = media_type.partition(";")[0].strip().lower()
    own = raw.get("mediaType", "")
    if not isinstance(own, str):
        raise InvalidManifest(f"the mediaType of {what} is {own!r}, which is no text")
    if raw.get("schemaVersion") == 1 or carried in _SCHEMA_1_TYPES or own in _SCHEMA_1_TYPES:
        raise InvalidManifest(
            f"{what} is a Docker schema 1 manifest, which is not supported",
            hint="Pull and push it once with a current docker or skopeo: that rewrites it as schema 2",
        )
    if raw.get("schemaVersion") != 2:
        raise InvalidManifest(f"the schemaVersion of {what} is {raw.get('schemaVersion')!r} instead of 2")
    if "manifests" in raw and ("layers" in raw or "config" in raw):
        raise InvalidManifest(f"{what} is an index and a manifest at once, so it has no single meaning")
    if "fsLayers" in raw:
        raise InvalidManifest(f"{what} is a manifest of schema 1 and of schema 2 at once, so it has no single meaning")
    kind = _document_type(carried, own, raw, what)
    annotations = _annotations(raw, what)
    if kind in INDEX_TYPES:
        return Index(kind, _descriptors(raw, "manifests", what), annotations, raw, data)
    config = _descriptor(raw.get("config"), f"the config of {what}")
    return Manifest(kind, config, _descriptors(raw, "layers", what), annotations, raw, data)


def parse_config(data: bytes, what: str) -> ImageConfig:
    """The image config in `data`; `what` names it in errors. Raises InvalidManifest, also for what configures no image."""
    raw = _json_object(data, what)
    rootfs = raw.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(rootfs, dict) or not isinstance(diff_ids, list) or rootfs.get("type", "layers") != "layers":
        raise InvalidManifest(
            f"{what} is no image config: it has no rootfs with diff_ids",
            hint="The reference names something other than a container image (a Helm chart, a wasm module, a signature)",
        )
    if len(diff_ids) > MAX_DESCRIPTORS:
        raise InvalidManifest(f"{what} lists {len(diff_ids)} diff IDs, over the limit of {MAX_DESCRIPTORS}")
    return ImageConfig(
        tuple(parse_digest(diff_id, f"diff ID {number} of {what}") for number, diff_id in enumerate(diff_ids)),
        _text(raw, "architecture", what),
        _text(raw, "os", what),
        _text(raw, "variant", what),
        raw,
    )


def layer_kind(layer: Descriptor) -> LayerKind:
    """How a layer's tar is compressed, by its media type. Raises InvalidManifest for what is no tar we may read."""
    media_type = layer.media_type
    kind = _LAYER_KINDS.get(media_type)
    if kind is not None:
        return kind
    name = f"layer {layer.digest} ({media_type})"
    if media_type.endswith("+encrypted"):
        raise InvalidManifest(
            f"{name} is encrypted", hint="Decrypt the image first, for example with skopeo copy --decryption-key"
        )
    if ".nondistributable." in media_type or ".foreign." in media_type:
        raise InvalidManifest(
            f"{name} is a foreign layer, which registries do not hold",
            hint="Push the image with its foreign layers included, then try again",
        )
    raise InvalidManifest(
        f"{name} is no layer of a container image",
        hint="The reference names something else that a registry can hold (a Helm chart, a wasm module, a signature)",
    )


def parse_platform(text: str) -> Platform:
    """`OS/ARCHITECTURE[/VARIANT]` as on a command line. Raises UsageError."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(part and part.replace("_", "").replace("-", "").isalnum() for part in parts):
        raise UsageError(f"{text!r} is no platform", hint="Write it as OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT: linux/arm/v7")
    return _normal(*parts)


def this_platform() -> Platform:
    """The platform of this machine."""
    machine = _machine.machine().lower()
    variant = machine[3:5] if machine.startswith("armv") else ""
    return _normal("linux", "arm" if variant else machine, variant)


def is_attestation(entry: Descriptor) -> bool:
    """Whether an index's entry speaks about an image instead of being one."""
    return REFERENCE_TYPE in entry.annotations


def choose_platform(index: Index, platform: Platform, what: str = "the image") -> Descriptor:
    """The index's entry that runs best on `platform`: the same variant, or the next older one.

    An entry without a platform is taken when it is the only image there is. Raises NotFound, naming `what` and listing what there is.
    """
    images = [entry for entry in index.manifests if not is_attestation(entry)]
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    for wanted in _runnable(platform):
        for entry in images:
            if entry.platform == wanted:
                return entry
    there = ", ".join(dict.fromkeys(str(entry.platform) for entry in images if entry.platform)) or "none"
    raise NotFound(f"{what} has nothing for {platform}; its platforms: {there}", hint="Name one of them with --platform")


# Go's names for what uname and people call otherwise, as containerd's platforms package normalises them.
_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
_BASE_VARIANTS: Final = {"amd64": "v1", "arm64": "v8"}
"""The variant that an architecture means when none is named, and that is therefore left out."""


def _normal(os: str, architecture: str, variant: str = "") -> Platform:
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    if architecture in _ARCHITECTURES:
        architecture, implied = _ARCHITECTURES[architecture]
        variant = variant or implied
    if variant.isdigit():
        variant = "v" + variant
    if architecture == "arm" and not variant:
        variant = "v7"
    if variant == _BASE_VARIANTS.get(architecture):
        variant = ""
    return Platform({"macos": "darwin"}.get(os, os), architecture, variant)


def _runnable(platform: Platform) -> list[Platform]:
    """What runs on `platform`, the best first: a machine of one variant runs the older ones too."""
    found = [platform]
    version = platform.variant.removeprefix("v")
    oldest = {"arm": 5, "amd64": 1}.get(platform.architecture)
    if oldest is not None and version.isdigit():
        older = range(min(int(version), 9) - 1, oldest - 1, -1)
        found += [_normal(platform.os, platform.architecture, f"v{number}") for number in older]
    elif platform.architecture == "arm64" and platform.variant:
        found.append(platform._replace(variant=""))
    return found


def _document_type(carried: str, own: str, raw: Mapping[str, Any], what: str) -> str:
    known = INDEX_TYPES | MANIFEST_TYPES
    if own and own not in known:
        raise InvalidManifest(f"{what} is a {own[:200]!r}, which is neither an image manifest nor an index")
    if own and carried in known and carried != own:
        raise InvalidManifest(f"{what} is served as {carried} but says it is {own}")
    kind = own or (carried if carried in known else OCI_INDEX if "manifests" in raw else OCI_MANIFEST)
    wanted = "manifests" if kind in INDEX_TYPES else "layers"
    if wanted not in raw:
        raise InvalidManifest(f"{what} is a {kind} without {wanted!r}")
    return kind


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidManifest(f"{what} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidManifest(f"{what} is JSON, but no object")
    return raw


def _descriptors(raw: Mapping[str, Any], key: str, what: str) -> tuple[Descriptor, ...]:
    found = raw[key]
    if found is None:  # Go writes an empty list so
        return ()
    if not isinstance(found, list):
        raise InvalidManifest(f"{key!r} of {what} is no list")
    if len(found) > MAX_DESCRIPTORS:
        raise InvalidManifest(f"{what} has {len(found)} {key}, over the limit of {MAX_DESCRIPTORS}")
    return tuple(_descriptor(item, f"{key}[{number}] of {what}") for number, item in enumerate(found))


def _descriptor(raw: object, what: str) -> Descriptor:
    if not isinstance(raw, dict):
        raise InvalidManifest(f"{what} is missing or no object")
    size = raw.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise InvalidManifest(f"the size of {what} is {size!r}, which is no count of bytes")
    platform = None
    if raw.get("platform") is not None:
        found = raw["platform"]
        if not isinstance(found, dict):
            raise InvalidManifest(f"the platform of {what} is no object")
        platform = _normal(*(_text(found, key, f"the platform of {what}") for key in ("os", "architecture", "variant")))
    return Descriptor(
        _text(raw, "mediaType", what),
        parse_digest(raw.get("digest"), f"the digest of {what}"),
        size,
        _annotations(raw, what),
        platform,
        raw,
    )


def _annotations(raw: Mapping[str, Any], what: str) -> Mapping[str, str]:
    found = raw.get("annotations") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidManifest(f"the annotations of {what} are no texts by name")
    return found


def _text(raw: Mapping[str, Any], key: str, what: str) -> str:
    value = raw.get(key, "")
    if not isinstance(value, str):
        raise InvalidManifest(f"{key!r} of {what} is {value!r}, which is no text")
    return value
