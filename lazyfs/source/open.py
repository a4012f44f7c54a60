"""Opens the source or sink of a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lazyfs.errors import UsageError
from lazyfs.registry.access import AccessOptions, parse_creds
from lazyfs.source.layout import Layout
from lazyfs.source.protocol import ImageSink, ImageSource
from lazyfs.source.reference import Reference

if TYPE_CHECKING:
    from lazyfs.source.repository import Repository

__all__ = ["AccessOptions", "open_sink", "open_source", "parse_creds"]


def open_source(reference: Reference, options: AccessOptions) -> ImageSource:
    """The source of an image; nothing is requested yet. The caller closes it. Raises UsageError for invalid proxy settings."""
    return Layout(Path(reference.location)) if reference.transport == "oci" else _repository(reference, options)


def open_sink(reference: Reference, options: AccessOptions) -> ImageSink:
    """The sink for an image. A layout's directory is created at the first write. The caller closes it.

    Raises UsageError if the destination contains a digest: the digest follows from what is written.
    """
    if reference.digest:
        raise UsageError(
            f"the destination {reference} names a digest", hint="A destination has a tag; its digest follows from the content"
        )
    return Layout(Path(reference.location)) if reference.transport == "oci" else _repository(reference, options)


def _repository(reference: Reference, options: AccessOptions) -> Repository:
    # Imported here, because httpx and ssl take 70 ms, and layouts do not need them.
    from lazyfs.source.repository import Repository

    return Repository(reference.host, reference.repository, options)
