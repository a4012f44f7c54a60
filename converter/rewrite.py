"""The documents of a converted image: the source's, with what conversion changes and nothing else.

Types become OCI's: Docker's own manifests lose annotations at some registries, and the TOC's digest is one. Fields
that we do not know stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from converter.kept import TOC_DIGEST, UNCOMPRESSED_SIZE
from converter.layer import NewLayer
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    REFERENCE_DIGEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
)
from lazyfs.source.protocol import Document

SOURCE_DIGEST: Final = "dev.lazyfs.source.digest"
"""Annotation of a converted manifest or index: the digest of the one that it was made of."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FOREIGN: Final = ("io.containers.zstd-chunked.", "io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/")
"""Annotations that speak about the bytes of a layer, which are others now."""


def rewrite_config(config: ImageConfig, data: bytes, layers: Sequence[NewLayer]) -> bytes:
    """The config with the new diff IDs, in the labels that name the old ones as well (as buildpacks' metadata does)."""
    new_ids = [layer.diff_id for layer in layers]
    if tuple(new_ids) == config.diff_ids:
        return data
    raw = dict(config.raw)
    raw["rootfs"] = {**raw["rootfs"], "diff_ids": new_ids}
    inner = raw.get("config")
    if isinstance(inner, dict) and isinstance(inner.get("Labels"), dict):
        renamed: dict[str, str] = dict(zip(config.diff_ids, new_ids, strict=True))
        raw["config"] = {**inner, "Labels": {key: _renamed(value, renamed) for key, value in inner["Labels"].items()}}
    return msgspec.json.encode(raw)


def rewrite_manifest(manifest: Manifest, source: Digest, config: bytes, layers: Sequence[NewLayer]) -> Document:
    """The manifest of the new image; the source's own document where nothing has changed."""
    raw: dict[str, Any] = {**manifest.raw, "schemaVersion": 2, "mediaType": OCI_MANIFEST}
    raw["config"] = _descriptor(manifest.config, OCI_CONFIG, digest_of(config), len(config))
    raw["layers"] = [_layer(old, new) for old, new in zip(manifest.layers, layers, strict=True)]
    raw.pop("subject", None)
    return _document(raw, manifest, OCI_MANIFEST, source)


def rewrite_index(index: Index, source: Digest, documents: Mapping[Digest, Document]) -> Document:
    """The index with `documents`, by the digests of what they replace, and what speaks about them pointing to them."""
    entries = []
    for old in index.manifests:
        new = documents[old.digest]
        entry = _descriptor(old, new.media_type, new.digest, len(new.data))
        about = old.annotations.get(REFERENCE_DIGEST, "")
        if about in documents:
            entry["annotations"] = {**old.annotations, REFERENCE_DIGEST: documents[Digest(about)].digest}
        entries.append(entry)
    raw = {**index.raw, "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    raw.pop("subject", None)
    return _document(raw, index, OCI_INDEX, source)


def rewrite_attestation(manifest: Manifest, source: Digest, documents: Mapping[Digest, Document]) -> Document:
    """An attestation's manifest: as it is, unless it names its image as its subject."""
    subject = manifest.raw.get("subject")
    new = documents.get(subject.get("digest", Digest(""))) if isinstance(subject, dict) else None
    if new is None:
        return Document(manifest.media_type, source, manifest.data)
    raw = {
        **manifest.raw,
        "subject": {**manifest.raw["subject"], "mediaType": new.media_type, "digest": new.digest, "size": len(new.data)},
    }
    data = msgspec.json.encode(raw)
    return Document(manifest.media_type, digest_of(data), data)


def _document(raw: dict[str, Any], old: Manifest | Index, media_type: str, source: Digest) -> Document:
    if old.media_type == media_type and raw == {"mediaType": media_type, **old.raw}:
        return Document(media_type, source, old.data)
    raw["annotations"] = {**(raw.get("annotations") or {}), SOURCE_DIGEST: source}
    encoded = msgspec.json.encode(raw)
    return Document(media_type, digest_of(encoded), encoded)


def _layer(old: Descriptor, new: NewLayer) -> dict[str, Any]:
    descriptor = _descriptor(old, OCI_LAYER_GZIP, new.digest, new.size)
    if not new.kept:
        others = {key: value for key, value in old.annotations.items() if not key.startswith(_FOREIGN)}
        descriptor["annotations"] = {**others, TOC_DIGEST: new.toc_digest, UNCOMPRESSED_SIZE: str(new.tar_size)}
    return descriptor


def _descriptor(old: Descriptor, media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    raw = {**old.raw, "mediaType": media_type, "digest": digest, "size": size}
    if digest != old.digest:
        raw.pop("data", None)  # they would bring other bytes
        raw.pop("urls", None)
    return raw


def _renamed(value: Any, renamed: Mapping[str, str]) -> Any:
    return _DIGEST.sub(lambda found: renamed.get(found[0], found[0]), value) if isinstance(value, str) else value
