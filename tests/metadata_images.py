"""What tests ask of an image: is it sound, and what does overlayfs show of a stack of them?"""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lazyfs.erofs.image import write_image
from lazyfs.erofs.outline import Outline, root_is_opaque
from lazyfs.erofs.reader import inherited_from
from lazyfs.format.entry import Entry
from lazyfs.kernel.loop import loop_device
from lazyfs.kernel.mounting import READ_ONLY, Context, attach, unmount


def image_of(entries: Sequence[Entry], inherited: Mapping[bytes, Entry] | None = None) -> bytes:
    """The image's bytes."""
    file = io.BytesIO()
    write_image(entries, file, inherited)
    return file.getvalue()


def write_stack(layers: Sequence[Sequence[Entry]], folder: Path) -> list[Path]:
    """An image a layer, each sound and with what it inherits from those below, lowest first."""
    images: list[Path] = []
    for number, layer in enumerate(layers):
        image = folder / f"{number}.erofs"
        image.write_bytes(image_of(layer, inherited_from(images, Outline(layer).implied())))
        check(image)
        images.append(image)
    return images


def check(image: Path) -> None:
    """fsck.erofs finds nothing wrong."""
    # It recurses, at 4 KiB and more a directory: paths of PATH_MAX need another stack.
    done = subprocess.run(["prlimit", "--stack=unlimited", "fsck.erofs", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "<E>" not in done.stdout + done.stderr, done.stdout + done.stderr


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The image alone, mounted."""
    at.mkdir(exist_ok=True)
    with ExitStack() as stack:
        with open(image, "rb") as file:
            device = stack.enter_context(loop_device(file.fileno(), b"lazyfs test"))
            with Context("erofs") as context:
                context.set("ro")
                context.set("source", device)
                context.create()
                _attach(context, at)
        stack.callback(unmount, at)
        yield at


@contextmanager
def stacked(layers: Sequence[Sequence[Entry]], objects: Path, folder: Path) -> Iterator[Path]:
    """overlayfs over the images of `layers`, lowest first, cut at an opaque root; files' data lie in `objects`."""
    with ExitStack() as stack:
        images = write_stack(layers, folder)
        start = max((depth for depth, layer in enumerate(layers) if root_is_opaque(layer)), default=0)
        below = [stack.enter_context(mounted(image, image.with_suffix(".mount"))) for image in images[start:]]
        at = folder / "merged"
        at.mkdir(exist_ok=True)
        with Context("overlay") as context:
            for layer in reversed(below):
                context.set("lowerdir+", str(layer))
            context.set("datadir+", str(objects))
            context.set("metacopy", "on")
            context.set("redirect_dir", "on")
            context.create()
            _attach(context, at)
        stack.callback(unmount, at)
        yield at


def _attach(context: Context, at: Path) -> None:
    mount = context.mount(READ_ONLY)
    try:
        attach(mount, at)
    finally:
        os.close(mount)
