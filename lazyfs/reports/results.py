"""The result of an order, which is its last report. The result of a status order is in status.py.

Sizes are in bytes. Fields that an earlier lazyfsd does not send have defaults.
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
    """The image is unmounted."""

    directory: str
    ending: int = 0
    """The pid of lazyfsd's keeper if lazyfsd now exits, because this was its last mount; else 0."""


class PruneResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed from the store."""

    objects: int
    documents: int
    parts: int = 0
    """Partial blobs of layers."""
    bytes: int
    held_bytes: int
    """Of `bytes`: files that are still open or mounted, which take space until they are closed."""
    used_bytes: int
    """The size of the store afterwards."""


class LayerResult(msgspec.Struct, frozen=True):
    """One layer of a pulled image."""

    digest: str
    size: int
    """Of the blob."""
    chain_id: str
    reason: str
    """Why it is not lazy; empty if it is. Completes a sentence that begins with the layer."""
    lazy: bool


class PullResult(msgspec.Struct, frozen=True):
    """The image is in containerd."""

    image: str
    """Its name in containerd."""
    digest: str
    """Of what the reference names now: an index or a manifest."""
    manifest: str
    """The manifest's digest."""
    layers: tuple[LayerResult, ...]
    """The lowest first."""


class PortableResult(msgspec.Struct, frozen=True):
    """The portable mount answers. Sent again when the image is complete, if the client waits for that."""

    image: str
