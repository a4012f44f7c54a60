"""Real programs and libraries as test data: zeros and random bytes would flatter one thing and slander another."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from isal import isal_zlib

from bench.place import Place
from tests.images.layer import Blob
from tests.images.layout import Layout

ELF = b"\x7fELF"
_STEP = 1 << 20


def libraries(place: Place, image: str) -> Iterator[bytes]:
    """The contents of all ELF files of an image, each content once, in the order of its layers."""
    layout = Layout(Path(place.built(image).split(":")[1]))
    digest = layout.manifest_of(image)
    assert digest is not None
    seen = set()
    for layer in json.loads(layout.blob(digest).read_bytes())["layers"]:
        with tarfile.open(layout.blob(layer["digest"])) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and member.size > len(ELF) else None
                if file is not None and (start := file.read(len(ELF))) == ELF:
                    data = start + file.read()
                    if (known := hashlib.sha256(data).digest()) not in seen:
                        seen.add(known)
                        yield data


def write_file(path: Path, contents: Iterator[bytes], size: int) -> Path:
    """A file of exactly `size` bytes out of `contents`. ValueError where there are too few."""
    left = size
    with path.open("wb") as file:
        for data in contents:
            file.write(data[:left])
            left -= len(data[:left])
            if not left:
                return path
    raise ValueError(f"{path} lacks {left} of {size} bytes")


class _Quick:
    """A writable file: what goes in is gzipped at isal's lowest level, ten times quicker than an image builder does it."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._gzip = isal_zlib.compressobj(0, isal_zlib.DEFLATED, 31)
        self._outer, self._inner = hashlib.sha256(), hashlib.sha256()
        self._tar_size = 0

    def write(self, data: bytes) -> int:
        self._inner.update(data)
        self._tar_size += len(data)
        self._keep(self._gzip.compress(data))
        return len(data)

    def _keep(self, data: bytes) -> None:
        self._outer.update(data)
        self._target.write(data)

    def finish(self) -> Blob:
        self._keep(self._gzip.flush())
        digest, diff_id = self._outer.hexdigest(), self._inner.hexdigest()
        return Blob(f"sha256:{digest}", self._target.tell(), f"sha256:{diff_id}", self._tar_size)


def make_image(folder: Path, name: str, fill: Callable[[tarfile.TarFile], Any]) -> str:
    """An image of one layer, which `fill` fills, in a layout of its own in `folder`. How `oci:` notation names it."""
    layout = Layout(folder / f"made-{name}")
    temporary = layout.blobs / "under-way"
    with temporary.open("wb") as file:
        quick = _Quick(file)
        with tarfile.open(fileobj=cast(Any, quick), mode="w|", bufsize=_STEP) as tar:
            fill(tar)
        blob = quick.finish()
    temporary.rename(layout.blob(blob.digest))
    layout.add_image(name, [(blob, name)], {})
    return f"oci:{layout.path}:{name}"
