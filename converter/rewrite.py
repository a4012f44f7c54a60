"""The documents of a converted image: the source's, changed only where the conversion requires it.

Types become OCI's: Docker's own manifests lose annotations at some registries, and the TOC's digest is one. Unknown
fields stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from converter.layer import NewLayer
from lazyfs.format.dialect import TocClaim
from lazyfs.format.dialects import annotation_names
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.estargz import ESTARGZ, UNCOMPRESSED_SIZE
from lazyfs.format.foreign_json import decode, encode, fields, replaced
from lazyfs.format.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    REFERENCE_DIGEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
)
from lazyfs.source.protocol import Document

SOURCE_DIGEST: Final = "dev.lazyfs.source.digest"
"""Annotation of a converted manifest or index: the digest of its source."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FOREIGN: Final = ("io.containers.zstd-chunked.", "io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/")
"""Prefixes of annotations about a layer's bytes, which no longer apply; in addition to those of the dialects."""


def rewrite_config(config: ImageConfig, data: bytes, layers: Sequence[NewLayer]) -> bytes:
    """The config with the new diff IDs, also in labels that contain the old ones (such as buildpacks' metadata)."""
    new_ids = [layer.diff_id for layer in layers]
    if tuple(new_ids) == config.diff_ids:
        return data
    old = decode(data)
    raw = replaced(old, {"rootfs": replaced(_object(old, "rootfs"), {"type": "layers", "diff_ids": new_ids})})
    inner = _object(raw, "config")
    labels = _object(inner, "Labels")
    if labels:
        renamed: dict[str, str] = dict(zip(config.diff_ids, new_ids, strict=True))
        renewed = {key: _renamed(value, renamed) for key, value in labels.items()}
        raw = replaced(raw, {"config": replaced(inner, {"Labels": renewed})})
    return encode(raw)


def rewrite_manifest(manifest: Manifest, source: Digest, config: bytes, layers: Sequence[NewLayer]) -> Document:
    """The manifest of the new image; the source's own bytes if nothing has changed."""
    new = {
        "config": _descriptor(manifest.config, OCI_CONFIG, digest_of(config), len(config)),
        "layers": [_layer(old, new) for old, new in zip(manifest.layers, layers, strict=True)],
    }
    return _document(new, manifest, OCI_MANIFEST, source)


def rewrite_index(index: Index, source: Digest, documents: Mapping[Digest, Document]) -> Document:
    """The index with `documents`, keyed by the digests that they replace; entries that refer to those refer to the new ones."""
    entries = []
    for old in index.manifests:
        new = documents[old.digest]
        entry = _descriptor(old, new.media_type, new.digest, len(new.data))
        about = old.annotations.get(REFERENCE_DIGEST, "")
        if about in documents:
            entry = replaced(entry, {"annotations": {**old.annotations, REFERENCE_DIGEST: documents[Digest(about)].digest}})
        entries.append(entry)
    return _document({"manifests": entries}, index, OCI_INDEX, source)


def rewrite_attestation(manifest: Manifest, source: Digest, documents: Mapping[Digest, Document]) -> Document:
    """An attestation's manifest: unchanged, unless it names its image as its subject."""
    subject = _object(manifest.raw, "subject")
    digest = fields(subject, ("digest",)).get("digest")
    new = documents.get(Digest(digest)) if isinstance(digest, str) else None
    if new is None:
        return Document(manifest.media_type, source, manifest.data)
    changed = {"mediaType": new.media_type, "digest": new.digest, "size": len(new.data)}
    data = encode(replaced(manifest.raw, {"subject": replaced(subject, changed)}))
    return Document(manifest.media_type, digest_of(data), data)


def _document(new: Mapping[str, Any], old: Manifest | Index, media_type: str, source: Digest) -> Document:
    """`old` with the fields `new`; its own bytes if that changes nothing."""
    raw = replaced(old.raw, {"schemaVersion": 2, "mediaType": media_type, **new})
    raw = {name: value for name, value in raw.items() if name.casefold() != "subject"}
    if old.media_type == media_type and raw == {"schemaVersion": 2, "mediaType": media_type, **old.raw}:
        return Document(media_type, source, old.data)
    raw = replaced(raw, {"annotations": {**old.annotations, SOURCE_DIGEST: source}})
    encoded = encode(raw)
    return Document(media_type, digest_of(encoded), encoded)


def _layer(old: Descriptor, new: NewLayer) -> dict[str, Any]:
    descriptor = _descriptor(old, ESTARGZ.media_type, new.digest, new.size)
    if not new.kept:
        stale = annotation_names()
        others = {key: value for key, value in old.annotations.items() if key not in stale and not key.startswith(_FOREIGN)}
        claim = TocClaim(ESTARGZ, new.toc_digest).annotations
        descriptor = replaced(descriptor, {"annotations": {**others, **claim, UNCOMPRESSED_SIZE: str(new.tar_size)}})
    return descriptor


def _descriptor(old: Descriptor, media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    raw = replaced(old.raw, {"mediaType": media_type, "digest": digest, "size": size})
    if digest == old.digest:
        return raw
    return {
        name: value for name, value in raw.items() if name.casefold() not in {"data", "urls"}
    }  # they would lead to other bytes


def _object(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object in a field; empty if there is none."""
    found = fields(raw, (name,)).get(name)
    return found if isinstance(found, dict) else {}


def _renamed(value: Any, renamed: Mapping[str, str]) -> Any:
    return _DIGEST.sub(lambda found: renamed.get(found[0], found[0]), value) if isinstance(value, str) else value
