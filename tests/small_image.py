"""A small image, made in code: many small files, some of several chunks, and what else a mount must get right.

It takes a second to build and to convert, where a real one takes minutes, so that a test may read all of it many times.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lazyfs.cli.main import main
from lazyfs.format.entry import Entry
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.toc import parse_toc
from tests.bad.oci import Oci
from tests.toc_member import read_toc_member

CHUNK_SIZE = 64 << 10
LARGE = 8
SMALL = 240


class SmallImage(NamedTuple):
    """The image, converted, and the bytes of each of its regular files."""

    layout: Path
    digest: str
    files: dict[str, bytes]

    @property
    def converted(self) -> str:
        """How `oci:` notation names it."""
        return f"oci:{self.layout}:v1"

    @property
    def original(self) -> Path:
        """The layout of what was converted."""
        return self.layout.parent / "original"

    def wrong_files(self, root: Path) -> list[str]:
        """The files that do not read back as they should where the image is mounted."""
        return [name for name, data in self.files.items() if (root / name).read_bytes() != data]


def content(seed: object, size: int) -> bytes:
    """Bytes that compress to about half."""
    return random.Random(repr(seed)).randbytes(size // 2 + 1).hex().encode()[:size]


def large_file(number: int) -> str:
    return f"data/large-{number}"


def small_file(number: int) -> str:
    return f"etc/conf.d/{number % 7}/small-{number:03}"


def build(folder: Path, small_files: int = SMALL, seed: object = 1) -> SmallImage:
    """Build and convert the image in `folder`; another `seed` gives other bytes."""
    files = {large_file(number): content((seed, number), CHUNK_SIZE * (2 + number) + 777 * number) for number in range(LARGE)}
    files |= {small_file(number): content((seed, -number), 150 + 61 * number % 9000) for number in range(small_files)}
    files |= {"empty": b"", "bin/tool": b"#!/bin/sh\necho tool\n", "first": content((seed, "first"), 30_000)}
    return _convert(folder, files, _lower(files), _upper(files))


def build_of(folder: Path, *layers: dict[str, bytes]) -> SmallImage:
    """An image of these layers, of which each holds these files alone."""
    tars = []
    for layer in layers:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in layer.items():
                _add(tar, name, data)
        tars.append(target.getvalue())
    return _convert(folder, {name: data for layer in layers for name, data in layer.items()}, *tars)


def _convert(folder: Path, files: dict[str, bytes], *tars: bytes) -> SmallImage:
    oci = Oci(folder / "original")
    oci.image(*map(oci.plain, tars))
    layout = folder / "converted"
    code = main(["convert", f"oci:{oci.path}:v1", f"oci:{layout}:v1", "--chunk-size", str(CHUNK_SIZE)])
    assert code == 0, code
    return SmallImage(layout, json.loads((layout / "index.json").read_text())["manifests"][0]["digest"], files)


def listed(layout: Path) -> Iterator[tuple[Path, Entry]]:
    """Every entry that the layers' TOCs in a layout list, with the path of its blob."""
    for path in (layout / "blobs" / "sha256").iterdir():
        blob = path.read_bytes()
        if blob.startswith(b"\x1f\x8b"):
            toc = parse_footer(blob[-FOOTER_SIZE:], len(blob), path.name)
            for entry in parse_toc(read_toc_member(blob[toc:-FOOTER_SIZE], path.name), toc, path.name):
                yield path, entry


def _lower(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            if name != "first":
                _add(tar, name, data, mode=0o4755 if name == "bin/tool" else 0o644)
        _add(tar, "gone", b"a whiteout above hides this")
        _add(tar, "bin/link", kind=tarfile.LNKTYPE, link="bin/tool")
        _add(tar, "bin/symlink", kind=tarfile.SYMTYPE, link="tool")
        _add(tar, "dev", kind=tarfile.DIRTYPE, mode=0o755)
        device = tarfile.TarInfo("dev/null")
        device.type, device.devmajor, device.devminor, device.mode = tarfile.CHRTYPE, 1, 3, 0o666
        tar.addfile(device)
        _add(tar, "run", kind=tarfile.DIRTYPE, mode=0o1777)
        _add(tar, "run/pipe", kind=tarfile.FIFOTYPE)
        _add(tar, "attributed", b"has attributes", xattrs={"user.colour": "blue"})
        _add(tar, "caf\udce9", b"a name that is not UTF-8")
    files |= {"attributed": b"has attributes", "caf\udce9": b"a name that is not UTF-8"}
    files["bin/link"] = files["bin/tool"]
    return target.getvalue()


def _upper(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, ".wh.gone")
        _add(tar, "first", files["first"])
    return target.getvalue()


def _add(
    tar: tarfile.TarFile, name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "",
    xattrs: dict[str, str] | None = None,
) -> None:  # fmt: skip
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
    info.mtime = 1_700_000_000
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
    tar.addfile(info, io.BytesIO(data))
