"""What the tests of whole conversions share: small layers, and a conversion that has to be refused."""

from __future__ import annotations

import gzip
import os
from typing import Any

import pytest

from lazyfs.errors import LazyfsError
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.manifest import OCI_LAYER_GZIP
from tests.unit.converter.making import Item, tar_of
from tests.unit.converter.places import MemoryRepository, converted

BASE: list[Item] = [
    (Entry(b"bin", "dir"), b""),
    (Entry(b"bin/sh", "reg", 0o755, size=10000), os.urandom(10000)),
    (Entry(b"etc", "dir", 0o700, 33), b""),
    (Entry(b"etc/conf", "reg", size=3), b"old"),
    (Entry(b"sh", "symlink", link=b"bin/sh"), b""),
]
APP: list[Item] = [(Entry(b"etc/.wh.conf", "reg"), b""), (Entry(b"app", "reg", size=2), b"hi")]
TAR = tar_of(APP)


def leaf(error: BaseException) -> BaseException:
    """The one error in a group."""
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


async def refused(source: MemoryRepository, sink: MemoryRepository, *arguments: Any) -> LazyfsError:
    """What a conversion ends with, which leaves the sink as it was."""
    before = (dict(sink.blobs), dict(sink.documents))
    with pytest.raises((LazyfsError, BaseExceptionGroup)) as caught:
        await converted(source, sink, *arguments)
    assert (sink.blobs, sink.documents) == before
    error = leaf(caught.value)
    assert isinstance(error, LazyfsError)
    return error


def with_layer(source: MemoryRepository, blob: bytes, media_type: str, diff_id: str) -> None:
    """An image whose first layer is good, and whose second is this."""
    tar = tar_of(BASE)
    layers = [source.add_blob(gzip.compress(tar), OCI_LAYER_GZIP), source.add_blob(blob, media_type)]
    source.add_manifest(layers, [digest_of(tar), diff_id])
