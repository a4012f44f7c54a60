"""What became of an order: the last report about it. Status has a file of its own, status.py.

Sizes are in bytes. A field that an earlier lazyfsd does not send has a default.
"""

from __future__ import annotations

import msgspec


class MountResult(msgspec.Struct, frozen=True):
    """The image is mounted natively."""

    directory: str
    image: str
    mode: str
    """Always `native`."""
    config: str
    """The image's config, as JSON."""
    pid: int
    """Of lazyfsd."""


class UnmountResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The mount is gone."""

    directory: str
    ending: int = 0
    """The process of lazyfsd's keeper, if lazyfsd ends now because this was its last mount; else 0."""


class PruneResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed from the store."""

    objects: int
    documents: int
    parts: int = 0
    """Layers that had arrived in part."""
    bytes: int
    held_bytes: int
    """Of `bytes`: files that are still open or mounted. They take space until they are closed."""
    used_bytes: int
    """What is left in the store."""


class LayerResult(msgspec.Struct, frozen=True):
    """One layer of a pulled image."""

    digest: str
    size: int
    """Of the blob."""
    chain_id: str
    reason: str
    """Why it is not lazy, as the end of a sentence that begins with the layer; empty for a lazy one."""
    lazy: bool


class PullResult(msgspec.Struct, frozen=True):
    """The image is in containerd."""

    image: str
    """Its name in containerd."""
    digest: str
    """Of what the reference names now: an index, or a manifest."""
    manifest: str
    """The manifest's digest."""
    layers: tuple[LayerResult, ...]
    """The lowest first."""


class PortableResult(msgspec.Struct, frozen=True):
    """The portable mount of an image answers; sent a second time when everything has arrived and somebody waits for that."""

    image: str
