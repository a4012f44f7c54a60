"""Layers as real images have them: what containerd's overlayfs shows of a full pull is what every way to mount them shows.

One image holds all that containerd and umoci both unpack, and unpack alike; where they differ, or nobody agrees, a test of its own
says what is shown. That what both refuse is refused stands in tests/unit/format/test_tar.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from converter.layer import Style, write_layer
from lazyfs.format.entry import Entry
from lazyfs.layertar.cut import every
from lazyfs.layertar.plan import Planned
from tests.bad.oci import GZIP_LAYER, TOC_DIGEST, Oci
from tests.commands import Lazyfs, umoci_unpack
from tests.containerd import Containerd
from tests.docker_registry import Registry
from tests.integration.test_convert import add_image
from tests.plugin import NAME, plugin_at
from tests.tars import END, file, header, pax
from tests.tree import Record, compare, walk

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.registry]

ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000000ffffffff10000400ffffffff20000000ffffffff")
"""Its owner may read and write, user 1000 read, nobody else anything."""
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
OWN_NAMES = (b"stargz.index.json", b".no.prefetch.landmark")
LEFT_OUT = (b".wh..wh.plnk", b".wh.below", b"low/.wh.below")
"""What a full pull shows and we do not."""


def folder(name: bytes, mode: bytes = b"0000755\0") -> bytes:
    return header(name + b"/", b"5", mode=mode)


def link(name: bytes, target: bytes) -> bytes:
    return header(name, b"1", 0, target)


def xattrs(*pairs: tuple[bytes, bytes]) -> bytes:
    return pax(*((b"SCHILY.xattr." + key, value) for key, value in pairs))


def device(name: bytes, kind: bytes, major: int, minor: int) -> bytes:
    fields = {"major": b"\x80" + major.to_bytes(7, "big"), "minor": b"\x80" + minor.to_bytes(7, "big")}
    return header(name, kind, **fields)


LOWER = [
    folder(b"low"),
    file(b"low/file", b"lower"),
    folder(b"emptied"),
    file(b"emptied/old", b"lower"),
    folder(b"replaced", b"0000700\0"),
    file(b"replaced/old", b"lower"),
    file(b"gone-by-link", b"lower"),
    file(b"gone-by-symlink", b"lower"),
    file(b"gone-by-device", b"lower"),
    folder(b"dir-by-device"),
    file(b"dir-by-device/old", b"lower"),
    file(b"linked-device", b"lower"),
    END,
]
AUFS = [
    header(b"./.wh..wh.aufs"),
    folder(b"./.wh..wh.orph"),
    folder(b"./.wh..wh.plnk"),
    file(b"./.wh..wh.plnk/12.34", b"a pseudo-link"),
    folder(b"aufs"),
    link(b"aufs/one", b".wh..wh.plnk/12.34"),
    link(b"aufs-two", b"./.wh..wh.plnk/12.34"),
    link(b".wh.gone-by-link", b".wh..wh.aufs"),
    link(b"emptied/.wh..wh..opq", b".wh..wh.aufs"),
    file(b"emptied/new", b"upper"),
    folder(b".wh.below"),
    file(b".wh.below/x", b"left out"),
    file(b"low/.wh.below/y", b"left out"),
    END,
]
HARD = [
    header(b".wh.gone-by-symlink", b"2", 0, b"nowhere"),
    header(b"gone-by-device", b"3"),
    header(b"dir-by-device", b"3"),
    link(b"linked-device", b"gone-by-device"),
    device(b"wraps-to-0-0", b"3", 1 << 12, 1 << 20),
    device(b"large-numbers", b"4", (1 << 32) - 1, (1 << 32) - 1),
    device(b"beyond", b"3", (1 << 12) + 5, (1 << 20) + 7),
    file(b"replaced", b"a file, and soon a directory again"),
    file(b"twice", b"first"),
    link(b"keeps-the-first", b"./twice"),
    file(b"twice", b"second"),
    folder(b"was-a-directory"),
    file(b"was-a-directory/x", b"1"),
    file(b"was-a-directory", b"now a file"),
    header(b"symlink", b"2", 0, b"low/file", mode=b"0000640\0"),
    link(b"linked-symlink", b"symlink"),
    file(b"./dots//file", b"1"),
    file(b"/absolute/file", b"2"),
    folder(b"low/./again"),
    pax((b"path", b"/".join([b"p" * 255] * 5))) + file(b"short", b"a long path"),
    file(b"././@LongLink", b"g" * 120 + b"/" + b"n" * 250 + b"\0", b"L") + file(b"short", b"GNU's long name"),
    pax((b"mtime", b"1700000000.123456789")) + file(b"nanoseconds", b""),
    pax((b"uid", b"4294967294"), (b"gid", b"3000000000")) + file(b"owned", b"1", mode=b"0006755\0"),
    folder(b"sticky", b"0041777\0"),
    header(b"fifo", b"6", mode=b"0000622\0"),
    xattrs((b"user.empty", b""), (b"security.x", b"\0\xff\n="), (b"unknown.x", b"1"), (b"system.nfs4_acl", b"1"))
    + file(b"attributes", b"1"),
    xattrs((b"security.x", b"1"), (b"system.posix_acl_access", ACL)) + header(b"attributed-link", b"2", 0, b"low"),
    xattrs((b"system.posix_acl_access", b"no access list")) + file(b"bad-acl", b"1"),
    xattrs((b"system.posix_acl_access", ACL)) + file(b"acl", b"for user 1000", mode=b"0000640\0"),
    xattrs((b"security.capability", CAPABILITY)) + file(b"capable", b"1", mode=b"0000755\0"),
    END,
]
ONLY_CONTAINERD = [
    xattrs((b"user.x", b"1")) + header(b"user-attribute-link", b"2", 0, b"low"),
    xattrs((b"user.x", b"1")) + header(b"user-attribute-fifo", b"6"),
    END,
]
"""umoci fails; containerd goes on without the attribute."""


@pytest.fixture(scope="module")
def containerd(session_folder: Path) -> Iterator[Containerd]:
    """One containerd for the module."""
    with Containerd(session_folder / "layers-c") as running:
        yield running


@pytest.fixture(scope="module")
def source(session_folder: Path) -> str:
    """The image, in a layout. umoci unpacks it without the last layer."""
    layers = [b"".join(layer) for layer in (LOWER, AUFS, HARD, ONLY_CONTAINERD)]
    umoci_unpack(add_image(session_folder / "layers-umoci", *layers[:-1]), session_folder / "layers-unpacked")
    return add_image(session_folder / "layers", *layers)


@pytest.fixture(scope="module")
def pulled(containerd: Containerd, shared_registry: Registry, session_folder: Path) -> Callable[[str], dict[bytes, Record]]:
    """What overlayfs shows of a full pull of an image."""

    def pull(image: str) -> dict[bytes, Record]:
        containerd.pull(shared_registry.push(image, "layers:v1"))
        try:
            with containerd.shown("overlayfs", session_folder / "shown") as root:
                return walk(root)
        finally:
            (session_folder / "shown").rmdir()
            containerd.prune()

    return pull


@pytest.fixture(scope="module")
def full(source: str, pulled: Callable[[str], dict[bytes, Record]]) -> dict[bytes, Record]:
    """The original, pulled."""
    return pulled(source)


def assert_same(full: dict[bytes, Record], shown: dict[bytes, Record]) -> None:
    """The same but for what is left out, for directories' times that no layer names, and a link fewer: the pseudo-link's own name."""
    implied = {path for path, record in full.items() if record.type == "dir"}
    differences = compare(full, shown, untimed=implied, ignore=(*OWN_NAMES, *LEFT_OUT))
    aufs = [oci for oci in differences if oci.path in {"aufs/one", "aufs-two"}]
    assert [(oci.path, oci.field, oci.left, oci.right) for oci in aufs] == [
        ("aufs-two", "nlink", 3, 2),
        ("aufs/one", "nlink", 3, 2),
    ]
    assert [str(oci) for oci in differences if oci not in aufs] == []
    assert not [path for path in shown if path.startswith(LEFT_OUT) or path.startswith(b".wh.")]


@pytest.mark.umoci
@pytest.mark.containerd
@pytest.mark.parametrize("mode", ["portable", "native"])
@pytest.mark.parametrize("lazy", [False, True])
def test_every_way_to_mount_shows_what_a_full_pull_shows(
    mode: str, lazy: bool, source: str, full: dict[bytes, Record], lazyfs: Lazyfs, tmp_path: Path
) -> None:
    """Converted and not, natively and portably; what is left out is noted, and an access list holds."""
    image = source
    if lazy:
        image = f"oci:{tmp_path}/converted:v1"
        done = lazyfs.run("convert", source, image)
        assert (
            done.stderr.count(b"lazyfs: warning: ") == 1 and b"left out 2 entries below names that begin with .wh." in done.stderr
        )
    directory = tmp_path / "root"
    directory.mkdir()
    done = lazyfs.run("mount", image, directory, "--store", lazyfs.store, "--mode", mode, "--background", "off")
    try:
        assert (b"left out 2 entries" in done.stderr) == (not lazy)
        assert_same(full, walk(directory))
        assert (directory / "aufs/one").stat().st_ino == (directory / "aufs-two").stat().st_ino
        assert read_as(1000, directory / "acl") == b"for user 1000"
        assert read_as(1001, directory / "acl") == b""
    finally:
        lazyfs.run("umount", directory)


def read_as(user: int, path: Path) -> bytes:
    """What a user reads of a file: nothing where it may not."""
    command = ["setpriv", f"--reuid={user}", "--regid=1001", "--clear-groups", "cat", "/proc/self/fd/0/" + path.name]
    # By way of the directory: that of a test is for its owner alone.
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        return subprocess.run(command, stdin=descriptor, capture_output=True, timeout=30, check=False).stdout
    finally:
        os.close(descriptor)


@pytest.mark.umoci
@pytest.mark.containerd
def test_a_conversion_keeps_what_a_full_pull_shows(
    source: str, full: dict[bytes, Record], pulled: Callable[[str], dict[bytes, Record]], lazyfs: Lazyfs, tmp_path: Path
) -> None:
    """To containerd the converted image differs from the original as little as to us."""
    lazyfs.run("convert", source, f"oci:{tmp_path}/converted:v1")
    assert_same(full, pulled(f"oci:{tmp_path}/converted:v1"))


def foreign_lazy_layer(oci: Oci) -> None:
    """An image of one lazy layer whose converter knows nothing of AUFS: it has taken everything over, with chunks and hard links."""
    entries = [
        Planned(Entry(b".no.prefetch.landmark", "reg", 0, size=1), content=b"\x0f"),
        Planned(Entry(b".wh..wh.aufs", "reg")),
        Planned(Entry(b".wh..wh.plnk", "dir")),
        Planned(Entry(b".wh..wh.plnk/12.34", "reg", 0o4755, 7, size=13), content=b"a pseudo-link"),
        Planned(Entry(b"aufs", "dir")),
        Planned(Entry(b"aufs/one", "hardlink", 0o4755, 7, link=b".wh..wh.plnk/12.34")),
        Planned(Entry(b"two", "hardlink", 0o4755, 7, link=b".wh..wh.plnk/12.34")),
        Planned(Entry(b"low", "dir")),
        Planned(Entry(b"low/.wh.below/y", "reg", size=8), content=b"left out"),
        Planned(Entry(b"device", "char")),
        Planned(Entry(b"link", "symlink", 0o640, link=b"low")),
    ]
    with ThreadPoolExecutor(1) as threads:
        file, layer = write_layer(entries, lambda _at, _size: b"", Style(every(4096), 6), threads, 1, lambda _count: None)
    with file:
        file.seek(0)
        oci.image(oci.blob(file.read(), GZIP_LAYER, annotations={TOC_DIGEST: layer.toc_digest}, diff_id=layer.diff_id))


@pytest.mark.parametrize("mode", ["portable", "native"])
def test_a_lazy_layer_of_another_converter(mode: str, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """The same of its TOC: links to a pseudo-link are that file, its bytes come from where that is, and `verify` agrees."""
    oci = Oci(tmp_path / "image")
    foreign_lazy_layer(oci)
    image = f"oci:{oci.path}:v1"
    directory = tmp_path / "root"
    directory.mkdir()
    done = lazyfs.run("mount", image, directory, "--store", lazyfs.store, "--mode", mode, "--lazy-only")
    try:
        found = walk(directory)
        assert set(found) == {b".", b"aufs", b"aufs/one", b"two", b"low", b"link"}
        assert (directory / "two").read_bytes() == b"a pseudo-link"
        assert (found[b"two"].mode, found[b"two"].uid, found[b"two"].nlink, found[b"link"].mode) == (0o4755, 7, 2, 0o777)
        assert b"left out one entry below names that begin with .wh., which a full pull shows: 'low/.wh.below/y'" in done.stderr
    finally:
        lazyfs.run("umount", directory)
    lazyfs.run("verify", image)
    assert not lazyfs.json("convert", image, f"oci:{tmp_path}/converted:v1")["images"][0]["layers"][0]["kept"]


@pytest.mark.containerd
def test_layers_that_containerd_unpacks(shared_registry: Registry, session_folder: Path) -> None:
    """Onto our snapshotter, because they are not lazy: what lies below whiteouts' names is not shown there either."""
    layers = [b"".join(layer) for layer in (LOWER, AUFS)]
    image = shared_registry.push(add_image(session_folder / "layers-plain", *layers), "layers-plain:v1")
    with plugin_at(background=False) as plugin, Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd:
        containerd.pull_lazily(image, NAME)
        with containerd.shown(NAME, plugin.folder / "shown") as root:
            found = walk(root)
    assert not [path for path in found if path.startswith(b".wh.") or b"/.wh." in path]
    assert {b"aufs/one", b"aufs-two", b"emptied/new"} < set(found) and found[b"aufs/one"].nlink == 2
