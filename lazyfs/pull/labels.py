"""The labels that a pull sets: they make its content an image for containerd, and its layers lazy.

containerd's garbage collector keeps what it can reach from an image's record: index -> manifest -> config -> the topmost snapshot, by labels
that the client writes. Sources: containerd, images/handlers.go and images/mediatypes.go (`gc.ref.content.*`, and the names of ingests),
unpacker.go (`gc.ref.snapshot.*`), remotes/docker/handler.go (`distribution.source.*`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from lazyfs.format.dialect import TocClaim
from lazyfs.format.dialects import annotation_choices, claim_of, claimed_digest, dialect_of
from lazyfs.format.digest import Digest, digest_of, is_digest
from lazyfs.format.manifest import (
    DOCKER_CONFIG,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    Descriptor,
    Index,
    Manifest,
    check_layer_type,
)
from lazyfs.snapshots.labels import FOLLOWING, IMAGE, LAYER, LAYERS, MANIFEST, MAX_LABEL, SIZE, TARGET, format_toc
from lazyfs.source.reference import Reference

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""On the blob of an unpacked layer: its diff ID."""
MANAGED: Final = {"io.cri-containerd.image": "managed"}
"""On an image that CRI may use and remove."""

_CONTENT: Final = "containerd.io/gc.ref.content."
_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot."
_SOURCE: Final = "containerd.io/distribution.source."


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """The chain ID of each layer, the lowest first (image-spec, config.md, "Layer ChainID")."""
    found: list[Digest] = []
    for diff_id in diff_ids:
        found.append(digest_of(f"{found[-1]} {diff_id}".encode()) if found else diff_id)
    return tuple(found)


def children_labels(document: Manifest | Index) -> dict[str, str]:
    """Labels that keep a document's children. An index keeps all its manifests, as in containerd: missing ones do no harm."""
    children = (document.config, *document.layers) if isinstance(document, Manifest) else document.manifests
    labels: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for child in children:
        key = _child_key(child.media_type)
        number = seen[key]
        seen[key] += 1
        labels[key if key.endswith("config") and not number else f"{key}{number}"] = child.digest
    return labels


def snapshot_reference(snapshotter: str, chain_id: Digest) -> dict[str, str]:
    """On a config: the snapshot of its topmost layer."""
    return {_SNAPSHOT + snapshotter: chain_id}


def source_label(reference: Reference, known: Mapping[str, str]) -> dict[str, str]:
    """On all content: the repositories that it came from, with those in the `known` labels. Empty if they do not fit."""
    host = reference.host
    key = _SOURCE + (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0])
    value = ",".join(sorted({*filter(None, known.get(key, "").split(",")), reference.repository}))
    return {key: value} if fits(key, value) else {}


def layer_labels(
    name: str, manifest_digest: Digest, layers: Sequence[Descriptor], number: int, chain_id: Digest
) -> dict[str, str]:
    """For the Prepare of layer `number`: CRI's labels (see lazyfs.snapshots.labels), and those that spare lazyfsd the manifest.

    Only the annotations of the layer's dialect become labels. Raises InvalidManifest if the descriptor is not a layer.
    """
    layer = layers[number]
    labels = {
        TARGET: chain_id,
        IMAGE: name,
        MANIFEST: manifest_digest,
        LAYER: layer.digest,
        FOLLOWING: _joined(FOLLOWING, [each.digest for each in layers[number:]]),
        LAYERS: _joined(LAYERS, [f"{each.digest[7:]}:{each.size}:{format_toc(_claim(each))}" for each in layers]),
    }
    claim = _claim(layer)
    if claim is None:
        return labels
    return {**labels, **{name: layer.annotations[name] for name in claim.dialect.annotations}, SIZE: str(layer.size)}


def not_lazy(layer: Descriptor) -> str:
    """Why a layer cannot be lazy, as far as the manifest shows; `""` if it may be. Completes a sentence that begins with the layer.

    Raises InvalidManifest if the descriptor is not a layer.
    """
    check_layer_type(layer)
    dialect = dialect_of(layer.annotations)
    if dialect is None:
        return f"has no annotation {annotation_choices()}: it was not converted"
    if not is_digest(claimed_digest(layer.annotations)):
        return f"has an annotation {dialect.annotations[0]} that is not a sha256 digest"
    return ""


def ingest_name(media_type: str, digest: Digest) -> str:
    """The name of an ingest, as in containerd's own client: each can resume the other's."""
    kinds = ((INDEX_TYPES, "index"), (MANIFEST_TYPES, "manifest"), ({OCI_CONFIG, DOCKER_CONFIG}, "config"))
    kind = next((kind for types, kind in kinds if media_type in types), "layer" if _is_layer(media_type) else "unknown")
    return f"{kind}-{digest}"


def fits(key: str, value: str) -> bool:
    """Whether containerd accepts the label."""
    return len(key.encode()) + len(value.encode()) <= MAX_LABEL


def _child_key(media_type: str) -> str:
    if media_type in {OCI_CONFIG, DOCKER_CONFIG}:
        return _CONTENT + "config"
    if media_type in MANIFEST_TYPES:
        return _CONTENT + "m."
    return _CONTENT + "l." if _is_layer(media_type) else _CONTENT


def _is_layer(media_type: str) -> bool:
    return media_type.startswith(("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."))


def _claim(layer: Descriptor) -> TocClaim | None:
    """None for a layer that cannot be lazy."""
    return None if not_lazy(layer) else claim_of(layer.annotations, f"layer {layer.digest}")


def _joined(key: str, parts: Sequence[str]) -> str:
    """As many of the parts as fit, separated by commas."""
    found = ""
    for part in parts:
        longer = f"{found},{part}" if found else part
        if not fits(key, longer):
            break
        found = longer
    return found
