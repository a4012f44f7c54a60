"""What `import torch` fetches, beside what it asks for: how much the read-ahead of the kernel and of lazyfs fetches in excess.

What a program asks for is read from the pages in the kernel's cache after it ran in a portable mount whose kernel reads nothing ahead
(read_ahead_kb = 4): whatever the daemon fetched on its own account never got that far. A chunk is asked for where one of its pages is.

The image takes minutes to build and to convert, and 15 GB of disk: measured only when asked for by name.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import trio

from bench.container import build_reader, root_of, write_bundle
from bench.figure import Bar, Baseline, Figure
from bench.place import Place
from bench.roots import lazy_root
from lazyfs.format.platform import parse_platform
from lazyfs.image.image import load_layers, resolve_image
from lazyfs.image.layer import Layer
from lazyfs.source.open import AccessOptions, open_source
from lazyfs.source.reference import parse_reference
from lazyfs.vfs.tree import Tree
from tests.commands import run
from tests.images.table import IMAGES

IMAGE = "torch"
PATIENCE_S = 600
_PAGE = mmap.PAGESIZE


def measure(place: Place) -> list[Figure]:
    """Compressed bytes of chunks."""
    image, tools = place.lazy(IMAGE), build_reader(place.new_folder() / "tools")
    place.say(f"{IMAGE}: what it asks for")
    asked = _asked(place, image, tools)
    place.say(f"{IMAGE}: what is fetched")
    place.new_store()
    with lazy_root(place, image, "--background", "off") as bundle:
        _run(place, bundle, tools)
        fetched = place.lazyfs.json("status", root_of(bundle))["received_bytes"]
    name = f"{IMAGES[IMAGE].probe[-1]}, background off, fetched"
    return [Figure(name, "MB", (fetched / 1e6,), Bar("<=", 1.3, "ratio"), Baseline("chunks asked for", (asked / 1e6,)))]


def _asked(place: Place, image: str, tools: Path) -> int:
    bundle = place.new_folder()
    root = root_of(bundle)
    place.new_store()
    place.lazyfs.run("mount", image, root, "--mode", "portable", "--background", "off", "--store", place.lazyfs.store)
    try:
        device = root.stat().st_dev
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text("4")
        _run(place, bundle, tools)
        return _size(trio.run(_layers, image), root)
    finally:
        place.lazyfs.run("umount", root)


def _run(place: Place, bundle: Path, tools: Path) -> None:
    """The image's probe, in a container."""
    write_bundle(bundle, *IMAGES[IMAGE].probe, tools=tools)
    command = ("runc", "--root", bundle / "runc", "run", "--bundle", bundle, bundle.name)
    done = run(*command, env=place.environment, timeout=PATIENCE_S)
    if IMAGES[IMAGE].expect not in done.stdout.decode():
        raise RuntimeError(f"{IMAGE} does not work: {done.stdout!r} {done.stderr!r}")


async def _layers(image: str) -> tuple[Layer, ...]:
    reference = parse_reference(image)
    source = open_source(reference, AccessOptions())
    try:
        return await load_layers(
            source, None, await resolve_image(source, reference.selector, parse_platform("linux/amd64"), None)
        )
    finally:
        await source.aclose()


def _size(layers: tuple[Layer, ...], root: Path) -> int:
    """Compressed bytes of the chunks of which a page is in the kernel's cache."""
    members: dict[tuple[int, int], int] = {}
    for path, node in Tree([layer.entries for layer in layers]).walk():
        chunks = node.entry.chunks
        pages = set(_resident(os.path.join(os.fsencode(root), path))) if chunks else set()
        for chunk in chunks if pages else ():
            first, last = chunk.file_offset // _PAGE, (chunk.file_offset + chunk.size - 1) // _PAGE
            if any(page in pages for page in range(first, last + 1)):
                members[node.layer, chunk.member] = chunk.member_end - chunk.member
    return sum(members.values())


def _resident(path: bytes) -> Iterator[int]:
    """The pages of a file that are in the kernel's cache. Source: mincore(2); only a file's owner and root get true answers."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            return
        found = (ctypes.c_ubyte * -(-size // _PAGE))()
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if _libc.mincore(address, size, found):
            raise OSError(ctypes.get_errno(), "mincore", os.fsdecode(path))
        _libc.munmap(address, size)
        yield from (page for page, state in enumerate(found) if state & 1)
    finally:
        os.close(descriptor)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
