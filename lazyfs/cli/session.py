"""Opens an image for one command: source, store and layers, closed at the end."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from lazyfs.cli.options import access_of, platform_of, reference_of, store_of
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.image.image import Image, load_layers, resolve_image
from lazyfs.source.open import open_source
from lazyfs.source.protocol import ImageSource
from lazyfs.store.store import Store
from lazyfs.vfs.filesystem import FileSystem
from lazyfs.vfs.tree import Tree


@asynccontextmanager
async def open_image(arguments: argparse.Namespace, store: Store | None) -> AsyncIterator[tuple[ImageSource, Image]]:
    """The image that the command line names, resolved. Raises LazyfsError."""
    reference = reference_of(arguments)
    source = open_source(reference, access_of(arguments))
    try:
        yield source, await resolve_image(source, reference.selector, platform_of(arguments), store)
    finally:
        await source.aclose()


@asynccontextmanager
async def open_filesystem(arguments: argparse.Namespace) -> AsyncIterator[FileSystem]:
    """The image's merged file system, over the store that the command line names. Raises LazyfsError."""
    with await trio.to_thread.run_sync(Store.open, store_of(arguments)) as store:
        async with open_image(arguments, store) as (source, image), open_fetcher(store, source) as fetcher:
            layers = await load_layers(source, store, image)
            yield FileSystem(Tree([layer.entries for layer in layers]), layers, fetcher)
