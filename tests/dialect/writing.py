"""Writing the dialect `front`: an eStargz layer's tar and TOC, packed in another way."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import zstandard

from lazyfs.format.estargz import ESTARGZ
from lazyfs.format.manifest import OCI_LAYER_ZSTD
from lazyfs.image.toc_member import toc_in
from tests.bad.oci import Json, Oci, sha256
from tests.dialect.front import ANNOTATION, HEADER, MAGIC, SKIPPABLE
from tests.small_image import SmallImage

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT}/tests/dialect/site:{ROOT}"
"""Of processes that shall know the dialect."""


class Fronted(NamedTuple):
    """A layer."""

    blob: bytes
    diff_id: str
    toc_digest: str

    @property
    def annotations(self) -> dict[str, str]:
        return {ANNOTATION: self.toc_digest}


def fronted(path: Path) -> Fronted:
    """The eStargz blob at `path`, as a blob of this dialect."""
    with path.open("rb") as file:
        size = path.stat().st_size
        member = toc_in(file, size, ESTARGZ, path.name)
        toc = json.loads(member.document())
        rest = path.read_bytes()[: member.data_end]
    frames, places, tar = b"", {}, hashlib.sha256()
    while rest:
        stream = zlib.decompressobj(31)
        plain = stream.decompress(rest)
        places[member.data_end - len(rest)] = len(frames)
        frames += zstandard.compress(plain)
        tar.update(plain)
        rest = stream.unused_data
    frames += zstandard.compress(bytes(1024))  # the tar's end, which eStargz has behind its TOC
    tar.update(bytes(1024))
    room = 1024
    while True:
        entries = [
            entry | {"offset": room + places[entry.get("offset", 0)]} if "chunkDigest" in entry else entry
            for entry in toc["entries"]
        ]
        text = json.dumps({"version": 1, "entries": entries}).encode()
        packed = zstandard.compress(text)
        if HEADER + len(packed) <= room:
            break
        room *= 2
    numbers = len(packed).to_bytes(8, "little") + len(text).to_bytes(8, "little")
    front = SKIPPABLE + (room - 8).to_bytes(4, "little") + MAGIC + numbers + packed
    return Fronted(front.ljust(room, b"\0") + frames, f"sha256:{tar.hexdigest()}", sha256(packed))


def fronted_image(image: SmallImage, folder: Path) -> SmallImage:
    """A converted image with the same files, in this dialect; its layout in `folder`."""
    blobs = image.layout / "blobs" / "sha256"
    manifest: Json = json.loads((blobs / image.digest[7:]).read_bytes())
    oci = Oci(folder)
    layers = []
    for layer in manifest["layers"]:
        made = fronted(blobs / layer["digest"][7:])
        layers.append(oci.blob(made.blob, OCI_LAYER_ZSTD, annotations=made.annotations, diff_id=made.diff_id))
    return image._replace(layout=folder, digest=oci.image(*layers)["digest"])
