"""What we write, the peer reads with its own library; what the peer writes, we mount: byte for byte, in both directions.

The peer is stargz-snapshotter as Debian has it: `ctr-remote`, and a small Go program (tests/peer) around its library.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.commands import Lazyfs, run
from tests.containerd import Containerd
from tests.docker_registry import Registry
from tests.images.layout import Layout
from tests.tree import Record, compare, walk

pytestmark = [pytest.mark.images, pytest.mark.registry, pytest.mark.peer]

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "CGO_ENABLED": "0"}
OWN_NAMES = {".prefetch.landmark", ".no.prefetch.landmark"}
TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "dir",
    tarfile.FIFOTYPE: "fifo",
}

Read = Callable[[Path, str], dict[str, Any]]


class Seen(NamedTuple):
    """One entry, as the peer and the original tar both tell it."""

    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: str
    xattrs: tuple[tuple[str, bytes], ...]
    sha256: str


@pytest.fixture(scope="session")
def peer(session_folder: Path) -> Read:
    """`peer(blob, toc_digest)`: every entry of a blob, after the peer has verified all of it."""
    program = session_folder / "peer"
    environment = os.environ | GO | {"GOCACHE": str(session_folder / "go-cache")}
    run("/usr/bin/go", "build", "-o", program, ".", cwd=Path(__file__).parent.parent / "peer", env=environment, timeout=300)
    return lambda blob, toc_digest: json.loads(run(program, blob, toc_digest, timeout=300).stdout)


def layers_of(layout: Layout, tag: str) -> list[dict[str, Any]]:
    """The layers' descriptors of an image in a layout."""
    digest = layout.manifest_of(tag)
    assert digest is not None
    layers: list[dict[str, Any]] = json.loads(layout.blob(digest).read_bytes())["layers"]
    return layers


def printable(name: str) -> bool:
    """Whether a name is UTF-8: the peer sees a stand-in for one that is not."""
    return not any(0xDC80 <= ord(letter) <= 0xDCFF for letter in name)


@functools.cache
def in_tar(blob: Path) -> dict[str, Seen]:
    """The entries of an original layer, as Python reads them; of several with one name the last."""
    found: dict[str, Seen] = {}
    with tarfile.open(blob, encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            kind = TYPES.get(member.type, "reg")  # a sparse member has a type of its own
            data = tar.extractfile(member) if kind == "reg" else None
            whole, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
            sign = -1 if whole.startswith("-") else 1
            xattrs = {
                key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            found[member.name] = Seen(
                kind,
                member.size if kind == "reg" else 0,
                member.mode & 0o7777,
                member.uid,
                member.gid,
                sign * (abs(int(whole)) * 10**9 + int((fraction + "0" * 9)[:9])),
                member.linkname,
                tuple(sorted(xattrs.items())),
                hashlib.sha256(data.read()).hexdigest() if data else "",
            )
    return found


def as_seen(entry: dict[str, Any]) -> Seen:
    """The peer's word for an entry."""
    xattrs = tuple(sorted((key, base64.b64decode(value)) for key, value in (entry["xattrs"] or {}).items()))
    return Seen(**{field: entry[field] for field in Seen._fields if field != "xattrs"}, xattrs=xattrs)


@pytest.mark.parametrize(
    ("prioritised", "layers"),
    [(True, 2), *(pytest.param(prioritised, 5, marks=pytest.mark.slow) for prioritised in (True, False))],
)
def test_peer_reads_our_blobs(
    prioritised: bool, layers: int, peer: Read, images: Callable[[str], str], lazyfs: Lazyfs, tmp_path: Path
) -> None:
    """Every entry and every byte of the uppermost layers of `edge` (the lower ones are python's), verified and read by the peer's own
    library.
    """
    name = "edge"
    options: list[str | Path] = []
    if prioritised:
        record = tmp_path / "record"
        record.write_text("/usr/bin/python3\n/usr/lib/x86_64-linux-gnu/libc.so.6\n/etc/passwd\n/edge/big\n")
        options = ["--prioritize", record]
    lazyfs.run("convert", images(name), f"oci:{tmp_path}/layout:v1", *options, timeout=600)
    ours = Layout(tmp_path / "layout")
    original = Layout(Path(images(name).split(":")[1]))
    pairs = list(zip(layers_of(original, name), layers_of(ours, "v1"), strict=True))
    landmarks = set()
    for before, after in pairs[-layers:]:
        expected = in_tar(original.blob(before["digest"]))
        found = peer(ours.blob(after["digest"]), after["annotations"][TOC_DIGEST])
        landmarks |= OWN_NAMES & found.keys()
        stand_ins = {path for path in found if path not in expected} - OWN_NAMES
        for path, entry in expected.items():
            if printable(path) and printable(entry.link):
                # A hard link shows as its target does: the peer's reader resolves it.
                seen = as_seen(found[path])
                target = expected[entry.link] if entry.type == "hardlink" else entry
                assert seen == target, path
            elif entry.type == "reg":
                assert entry.sha256 in {found[stand_in]["sha256"] for stand_in in stand_ins}, path
        unprintable = {path for path in expected if not printable(path)}
        written_out = {path for path in stand_ins if found[path]["type"] == "dir"}
        assert len(stand_ins - written_out) == len(unprintable)
    assert landmarks == (OWN_NAMES if prioritised else {".no.prefetch.landmark"})


@pytest.mark.fuse
@pytest.mark.umoci
@pytest.mark.containerd
@pytest.mark.parametrize("image", ["busybox", *(pytest.param(name, marks=pytest.mark.slow) for name in ("debian", "python"))])
def test_we_mount_what_the_peer_wrote(
    image: str,
    lazyfs: Lazyfs,
    originals: Callable[[str], str],
    unpacked: Callable[[str], dict[bytes, Record]],
    shared_registry: Registry,
    session_folder: Path,
) -> None:
    """An image that `ctr-remote images optimize` has converted mounts, and reads back byte for byte."""
    name = f"{shared_registry.address}/peer/{image}:v1"
    with Containerd(session_folder / "c-peer") as containerd:
        pulled = containerd.pull(originals(image))
        containerd.ctr("images", "optimize", "--oci", "--no-optimize", pulled, name, program="ctr-remote")
        containerd.ctr("images", "push", "--plain-http", name, program="ctr-remote")
    with lazyfs.mounted(f"docker://{name}", "--background", "off") as root:
        assert not compare(unpacked(image), walk(root))
