"""What containerd wants of a snapshot that it prepares, read from the labels.

Sources: containerd, pkg/snapshotters/annotations.go (`cri.*`, which CRI, the transfer service and nerdctl set); the
stargz-snapshotter, fs/source/source.go (`remote/stargz.*`, which ctr-remote sets). The names are theirs, not a plugin's: whoever
understands them is served by those clients.

Annotations of an image's manifest become labels, too, if they begin with `containerd.io/snapshot/`: an image may say here
what it likes. Where both families speak and differ, one of them is the image's, and neither is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from lazyfs.errors import InvalidManifest
from lazyfs.format.dialect import TocClaim
from lazyfs.format.dialects import claimed_text, dialect_of, known, named
from lazyfs.format.digest import Digest, parse_digest
from lazyfs.format.estargz import ESTARGZ
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor

TARGET: Final = "containerd.io/snapshot.ref"
"""The chain ID of the layer that containerd is about to unpack: its leave to commit that layer at once, lazy."""
REMOTE: Final = "containerd.io/snapshot/remote"
"""What a lazy snapshot is labelled with."""
REMOTE_VALUE: Final = "remote snapshot"
SIZE: Final = "containerd.io/snapshot/lazyfs.size"
"""The blob's size in bytes. Of all clients only our own says it."""
LAYERS: Final = "containerd.io/snapshot/lazyfs.layers"
"""The image's layers from the lowest up, as many as fit: `HEX:SIZE:HEX` (blob, bytes, TOC; nothing for the TOC of one that has none),
between commas; `HEX:SIZE:HEX:DIALECT` for one that is not eStargz. Only our own client says it, too: who knows this need not ask for the manifest."""
REASON: Final = "containerd.io/snapshot/lazyfs.reason"
"""Set by us, on a snapshot that was unpacked: why the layer is not lazy, as the end of a sentence that begins with it."""
IMAGE: Final = "containerd.io/snapshot/cri.image-ref"
LAYER: Final = "containerd.io/snapshot/cri.layer-digest"
FOLLOWING: Final = "containerd.io/snapshot/cri.image-layers"
MANIFEST: Final = "containerd.io/snapshot/cri.manifest-digest"
MAX_LABEL: Final = 4096
"""Bytes of a label's name and value together: more is refused by containerd (pkg/labels/validate.go)."""

_REFERENCES: Final = (IMAGE, "containerd.io/snapshot/remote/stargz.reference")
_DIGESTS: Final = (LAYER, "containerd.io/snapshot/remote/stargz.digest")
_LAYERS: Final = (FOLLOWING, "containerd.io/snapshot/remote/stargz.layers")

_MAX_NAME: Final = 1024
_MAX_FOLLOWING: Final = 128
_MAX_SIZE: Final = 1 << 46
_DIGITS: Final = 16


class Ordinary(NamedTuple):
    """A snapshot that begins as an empty directory."""

    reason: str
    """`""` where nothing lazy was asked for; else why the layer cannot be, as the end of a sentence that begins with it."""


class ListedLayer(NamedTuple):
    """A layer of the image as our own client tells it. Nothing vouches for it: what it leads to is verified by the TOC's digest."""

    digest: Digest
    size: int
    toc: TocClaim | None
    """None: it cannot be lazy."""

    @property
    def descriptor(self) -> Descriptor:
        """The layer as a manifest would name it."""
        media_type, annotations = (self.toc.dialect.media_type, self.toc.annotations) if self.toc else (OCI_LAYER_GZIP, {})
        return Descriptor(media_type, self.digest, self.size, annotations, None, {})


class Claim(NamedTuple):
    """A layer that containerd would like to have without unpacking it."""

    target: str
    """The chain ID under which it will know the layer."""
    reference: str
    """The image, as the client wrote it: `HOST/REPO:TAG`, `HOST/REPO@DIGEST`."""
    digest: Digest
    """The layer's."""
    toc: TocClaim
    manifest_digest: Digest | None
    following: tuple[Digest, ...]
    """Layers that will be asked for soon: those above this one, as many as fitted into a label. Never this one."""
    size: int | None
    """The blob's, bytes, if anybody said it: unverified."""
    layers: tuple[ListedLayer, ...] = ()
    """The image's lowest layers, from the lowest up, if the client told them."""


def read_labels(labels: Mapping[str, str]) -> Claim | Ordinary:
    """What these labels ask for. Unknown ones and hints that make no sense are ignored."""
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
        return Ordinary("has no TOC that its manifest vouches for: it was not converted")
    toc_digest = _digest(claimed_text(labels))
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
    """Whether the snapshot of that key is one that containerd unpacks a layer into: never a container's.

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
    # A dict keeps the order; the bound is far above what fits into a label that containerd lets through.
    found = dict.fromkeys(map(_digest, text.split(",", _MAX_FOLLOWING)[:_MAX_FOLLOWING]))
    return tuple(each for each in found if each is not None and each != digest)


def _parse_layers(text: str) -> tuple[ListedLayer, ...]:
    """All of them or none: half of an image would be taken for the whole."""
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
    """A layer's TOC as it stands in LAYERS."""
    if claim is None:
        return ""
    return claim.digest[7:] if claim.dialect is ESTARGZ else f"{claim.digest[7:]}:{claim.dialect.name}"


def _parse_toc(text: str) -> TocClaim | None:
    toc, colon, name = text.partition(":")
    digest = _digest(f"sha256:{toc}")
    if digest is None or (colon and not known(name)):
        return None
    return TocClaim(named(name) if colon else ESTARGZ, digest)


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS:
        return None
    number = int(text)
    return number if number <= _MAX_SIZE else None
