"""From a reference to whoever holds the image."""

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
    """Who holds the image; nothing is asked yet. The caller closes it. Raises UsageError for proxies that are none."""
    return Layout(Path(reference.location)) if reference.transport == "oci" else _repository(reference, options)


def open_sink(reference: Reference, options: AccessOptions) -> ImageSink:
    """Where an image goes; a layout's directory is made when the first thing arrives. The caller closes it.

    Raises UsageError for a destination that names a digest: it follows from what is written.
    """
    if reference.digest:
        raise UsageError(
            f"the destination {reference} names a digest", hint="A destination has a tag; its digest follows from the content"
        )
    return Layout(Path(reference.location)) if reference.transport == "oci" else _repository(reference, options)


def _repository(reference: Reference, options: AccessOptions) -> Repository:
    # Here, because httpx and ssl cost 70 ms to import, which whoever only reads a layout need not pay.
    from lazyfs.source.repository import Repository

    return Repository(reference.host, reference.repository, options)
