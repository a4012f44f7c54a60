"""Reads from a snapshot's labels which layer containerd wants to prepare.

Sources: containerd, pkg/snapshotters/annotations.go (`cri.*`, set by CRI, the transfer service and nerdctl); the stargz-snapshotter,
fs/source/source.go (`remote/stargz.*`, set by ctr-remote). The label names belong to those clients, not to one plugin: a snapshotter that
reads them works with all of them.

Annotations of an image's manifest also become labels if they begin with `containerd.io/snapshot/`, so an image can set any of these. If
the two families of labels differ, one of them comes from the image, and neither is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from lazyfs.errors import InvalidManifest
from lazyfs.format.dialect import TocClaim
from lazyfs.format.dialects import claimed_digest, dialect_named, dialect_of, is_known
from lazyfs.format.digest import Digest, parse_digest
from lazyfs.format.estargz import ESTARGZ
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor

TARGET: Final = "containerd.io/snapshot.ref"
"""The chain ID of the layer that containerd is about to unpack: the snapshotter may commit the layer at once instead."""
REMOTE: Final = "containerd.io/snapshot/remote"
"""The label of a lazy snapshot."""
REMOTE_VALUE: Final = "remote snapshot"
SIZE: Final = "containerd.io/snapshot/lazyfs.size"
"""The blob's size in bytes. Only `lazyfs pull` sets it."""
LAYERS: Final = "containerd.io/snapshot/lazyfs.layers"
"""The image's layers, the lowest first, as many as fit, separated by commas: `HEX:SIZE:HEX` (blob, bytes, TOC; no TOC if the layer has
none), or `HEX:SIZE:HEX:DIALECT` for one that is not eStargz. Only `lazyfs pull` sets it; with it, the manifest need not be fetched."""
REASON: Final = "containerd.io/snapshot/lazyfs.reason"
"""Set by lazyfsd on an unpacked snapshot: why the layer is not lazy. Completes a sentence that begins with the layer."""
IMAGE: Final = "containerd.io/snapshot/cri.image-ref"
LAYER: Final = "containerd.io/snapshot/cri.layer-digest"
FOLLOWING: Final = "containerd.io/snapshot/cri.image-layers"
MANIFEST: Final = "containerd.io/snapshot/cri.manifest-digest"
MAX_LABEL: Final = 4096
"""Bytes of a label's name and value: containerd refuses more (pkg/labels/validate.go)."""

_REFERENCES: Final = (IMAGE, "containerd.io/snapshot/remote/stargz.reference")
_DIGESTS: Final = (LAYER, "containerd.io/snapshot/remote/stargz.digest")
_LAYERS: Final = (FOLLOWING, "containerd.io/snapshot/remote/stargz.layers")

_MAX_NAME: Final = 1024
_MAX_FOLLOWING: Final = 128
_MAX_SIZE: Final = 1 << 46
_DIGITS: Final = 16


class Ordinary(NamedTuple):
    """No lazy layer: the snapshot begins as an empty directory."""

    reason: str
    """`""` if no lazy layer was requested; else why the layer is not lazy. Completes a sentence that begins with the layer."""


class ListedLayer(NamedTuple):
    """A layer of the image as `lazyfs pull` lists it. Unverified: what is fetched with it is verified by the TOC's digest."""

    digest: Digest
    size: int
    toc: TocClaim | None
    """None: the layer cannot be lazy."""

    @property
    def descriptor(self) -> Descriptor:
        """The layer's descriptor, as a manifest would have it."""
        media_type, annotations = (self.toc.dialect.media_type, self.toc.annotations) if self.toc else (OCI_LAYER_GZIP, {})
        return Descriptor(media_type, self.digest, self.size, annotations, None, {})


class Claim(NamedTuple):
    """A layer that containerd does not have to unpack, if it can be lazy."""

    target: str
    """The chain ID by which containerd will find the layer."""
    reference: str
    """The image, as the client wrote it: `HOST/REPO:TAG`, `HOST/REPO@DIGEST`."""
    digest: Digest
    """Of the layer's blob."""
    toc: TocClaim
    manifest_digest: Digest | None
    following: tuple[Digest, ...]
    """The layers above this one, as many as fit into a label: containerd will ask for them next."""
    size: int | None
    """Bytes of the blob, if a label has it; unverified."""
    layers: tuple[ListedLayer, ...] = ()
    """The image's layers, the lowest first, as far as the client listed them."""


def read_labels(labels: Mapping[str, str]) -> Claim | Ordinary:
    """What these labels request. Unknown labels and invalid hints are ignored."""
    target = labels.get(TARGET, "")
    if not target:
        return Ordinary("")
    if len(target) > _MAX_NAME or not target.isprintable():
        return Ordinary("has a target that is not a chain ID")
    references = {labels[name] for name in _REFERENCES if labels.get(name)}
    digests = {labels[name] for name in _DIGESTS if labels.get(name)}
    if not references or not digests:
        return Ordinary("has no labels that say which image and blob it is: the client or containerd sends no annotations")
    if len(references) > 1 or len(digests) > 1:
        return Ordinary("has two sets of labels that differ")
    reference, digest = references.pop(), _digest(digests.pop())
    if not _is_reference(reference):
        return Ordinary("has a label for its image that names none")
    if digest is None:
        return Ordinary("has a label for its blob that is not a sha256 digest")
    dialect = dialect_of(labels)
    if dialect is None:
        return Ordinary("has no TOC digest in its manifest: it was not converted")
    toc_digest = _digest(claimed_digest(labels))
    if toc_digest is None:
        return Ordinary("has a TOC digest that is not a sha256 digest")
    return Claim(
        target,
        reference,
        digest,
        TocClaim(dialect, toc_digest),
        _digest(labels.get(MANIFEST, "")),
        _following(labels, digest),
        _number(labels.get(SIZE, "")),
        _parse_layers(labels.get(LAYERS, "")),
    )


def is_extract(key: str) -> bool:
    """Whether containerd unpacks a layer into the snapshot with that key; false for a container's.

    Source: core/snapshots/snapshotter.go, UnpackKeyFormat.
    """
    return key.rpartition("/")[2].startswith("extract-")


def _is_reference(text: str) -> bool:
    host, slash, path = text.partition("/")
    return len(text) <= _MAX_NAME and text.isprintable() and " " not in text and bool(host and slash and path)


def _digest(text: str) -> Digest | None:
    try:
        return parse_digest(text)
    except InvalidManifest:
        return None


def _following(labels: Mapping[str, str], digest: Digest) -> tuple[Digest, ...]:
    text = next((labels[name] for name in _LAYERS if labels.get(name)), "")
    # A dict keeps the order. The bound is far above what fits into a label.
    found = dict.fromkeys(map(_digest, text.split(",", _MAX_FOLLOWING)[:_MAX_FOLLOWING]))
    return tuple(each for each in found if each is not None and each != digest)


def _parse_layers(text: str) -> tuple[ListedLayer, ...]:
    """All listed layers, or none if one is invalid: a part of the list would be taken for the whole image."""
    found = []
    for item in text.split(",", _MAX_FOLLOWING)[:_MAX_FOLLOWING] if text else ():
        digest, _, rest = item.partition(":")
        size, _, toc = rest.partition(":")
        claim = _parse_toc(toc) if toc else None
        layer = ListedLayer(Digest(f"sha256:{digest}"), _number(size) or 0, claim)
        if not layer.size or _digest(layer.digest) is None or (toc and claim is None):
            return ()
        found.append(layer)
    return tuple(found)


def format_toc(claim: TocClaim | None) -> str:
    """A layer's TOC in the format of LAYERS."""
    if claim is None:
        return ""
    return claim.digest[7:] if claim.dialect is ESTARGZ else f"{claim.digest[7:]}:{claim.dialect.name}"


def _parse_toc(text: str) -> TocClaim | None:
    toc, colon, name = text.partition(":")
    digest = _digest(f"sha256:{toc}")
    if digest is None or (colon and not is_known(name)):
        return None
    return TocClaim(dialect_named(name) if colon else ESTARGZ, digest)


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS:
        return None
    number = int(text)
    return number if number <= _MAX_SIZE else None
