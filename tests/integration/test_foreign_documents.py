"""Documents of every kind: what skopeo, umoci and containerd take, lazyfs takes, and shows the same.

tests/documents/table.py says what they take. Whether that is so is asked of the peers themselves in the slow tier, row by row; in the
default tier of some rows.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from lazyfs.cli.main import main
from lazyfs.eager.image import load_image_layers
from lazyfs.errors import LazyfsError, most_severe
from lazyfs.format.entry import Entry
from lazyfs.format.platform import this_platform
from lazyfs.image.image import resolve_image
from lazyfs.registry.access import AccessOptions
from lazyfs.source.open import open_source
from lazyfs.source.reference import parse_reference
from lazyfs.store.store import Store
from lazyfs.vfs.tree import Tree
from tests.bad.oci import TOC_DIGEST, named
from tests.commands import Lazyfs, run
from tests.containerd import Containerd
from tests.documents.content import Content, Layer, Served, plain_layer, serving, sha256
from tests.documents.table import TABLE, Case
from tests.tree import Record, compare, walk

pytestmark = [pytest.mark.containerd, pytest.mark.registry, pytest.mark.umoci]


class Peers(NamedTuple):
    """What the others made of a document."""

    skopeo: bool
    containerd: bool
    umoci: Path | None
    """The unpacked tree."""


class Lab(NamedTuple):
    """What the tests share."""

    served: Served
    containerd: Containerd
    threads: ThreadPoolExecutor
    plain: list[Layer]
    lazy: list[Layer]
    tree: dict[bytes, Record]
    """What umoci makes of the plain image."""


def directory(name: str) -> tarfile.TarInfo:
    info = named(name, tarfile.DIRTYPE)
    info.mode, info.mtime = 0o750, 1_600_000_000
    return info


def file(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = named(name)
    info.mode, info.mtime = 0o640, 1_500_000_000
    return info, data


PLAIN = [
    plain_layer(
        directory("etc"), file("etc/name", b"lower"), file("etc/gone", b"x"), directory("var"), file("var/large", bytes(9000))
    ),
    plain_layer(
        directory("usr"), file("usr/more", b"upper"), directory("etc"), file("etc/name", b"new"), file("etc/.wh.gone", b"")
    ),
]


def lazy_layers(layout: Path) -> list[Layer]:
    """The layers of a converted image, as a case may handle them."""

    def blob(digest: str) -> bytes:
        return (layout / "blobs" / "sha256" / digest[7:]).read_bytes()

    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(blob(index["manifests"][0]["digest"]))
    found = []
    for layer in manifest["layers"]:
        data = blob(layer["digest"])
        tar = gzip.decompress(data)
        found.append(Layer(data, tar, sha256(tar), {TOC_DIGEST: layer["annotations"][TOC_DIGEST]}))
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[Lab]:
    """A registry of one layer of documents, a containerd, and the image in both forms."""
    folder = tmp_path_factory.mktemp("lab")
    usual = Content(PLAIN)
    usual.manifest()
    usual.write(folder / "usual")
    assert main(["convert", f"oci:{folder}/usual:v1", f"oci:{folder}/lazy:v1"]) == 0
    lazy = lazy_layers(folder / "lazy")
    run("umoci", "unpack", "--image", f"{folder}/usual:v1", folder / "tree")
    with serving() as served, Containerd(session_folder / "c-documents") as containerd, ThreadPoolExecutor(4) as threads:
        yield Lab(served, containerd, threads, PLAIN, lazy, walk(folder / "tree" / "rootfs"))


def ask_peers(lab: Lab, content: Content, name: str, folder: Path) -> Peers:
    """All three at once: each is a process of its own."""
    reference = f"{lab.served.host}/{name}:v1"
    layout = content.write(folder / "layout")

    def skopeo() -> bool:
        copied = f"oci:{folder}/copied:v1"
        return not run(
            "skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", copied, code=None
        ).returncode

    def containerd() -> bool:
        # A name space of its own, because a layer that is there already would not be looked at.
        pull = ("images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference)
        refused = lab.containerd.ctr("--namespace", name, *pull, code=None).returncode != 0
        lab.containerd.ctr("version")  # it is still there: a refusal is its own
        return not refused

    def umoci() -> Path | None:
        failed = run("umoci", "unpack", "--image", f"{layout}:v1", folder / "umoci", code=None).returncode
        return None if failed else folder / "umoci" / "rootfs"

    asked = [lab.threads.submit(skopeo), lab.threads.submit(containerd), lab.threads.submit(umoci)]
    return Peers(*(peer.result() for peer in asked))


Shown = tuple[str, int, int, int, int, int, bytes, str]
"""Of a path: type, mode, owner, group, size, time, target, and the digest of a file's bytes."""


def shown(reference: str, folder: Path, *, lazy_only: bool) -> dict[bytes, Shown]:
    """What a mount would show. Raises LazyfsError."""

    async def quiet(_: object) -> None:
        """Nobody looks at the progress."""

    async def look() -> dict[bytes, Shown]:
        wanted = parse_reference(reference)
        source = open_source(wanted, AccessOptions(None, plain_http=False))
        try:
            image = await resolve_image(source, wanted.selector, this_platform(), store)
            layers = await load_image_layers(source, store, image, lazy_only=lazy_only, progress=quiet)
        finally:
            await source.aclose()
        return {path: _shown(node.entry) for path, node in Tree([layer.entries for layer in layers]).walk() if path}

    with Store.open(folder) as store:
        try:
            return trio.run(look)
        except BaseExceptionGroup as group:
            raise most_severe(group) from group


def _shown(entry: Entry) -> Shown:
    digest = entry.chunks[0].digest.hex() if entry.chunks else hashlib.sha256().hexdigest() if entry.type == "reg" else ""
    return entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.link, digest


def expected(tree: dict[bytes, Record]) -> dict[bytes, Shown]:
    """The same of a tree that a peer has unpacked."""
    return {
        path: (*record[:4], record.size, record.mtime_ns, record.link, record.sha256)
        for path, record in tree.items()
        if path != b"."
    }


def serve(lab: Lab, case: Case, name: str) -> Content:
    """Make the image of a case, in both forms, what the registry has as `name` and `name`-lazy."""
    plain, lazy = Content(lab.plain), Content(lab.lazy)
    case.make(plain)
    case.make(lazy)
    lab.served.contents |= {name: plain, f"{name}-lazy": lazy}
    return plain


def taken(lab: Lab, case: Case, name: str, tmp_path: Path) -> list[dict[bytes, Shown]]:
    """What lazyfs shows of the image: converted, as it is, and lazily; from a registry and from a layout. What it refuses is left out."""
    reference = f"docker://{lab.served.host}/{name}"
    trees: list[dict[bytes, Shown]] = []
    if main(["convert", f"{reference}:v1", f"oci:{tmp_path}/converted:v1"]) == 0:
        trees.append(shown(f"oci:{tmp_path}/converted:v1", tmp_path / "store", lazy_only=True))
    for image, lazy_only in ((f"{reference}:v1", False), (f"{reference}-lazy:v1", case.lazy)):
        with suppress(LazyfsError):
            trees.append(shown(image, tmp_path / "store", lazy_only=lazy_only))
    assert len(trees) == (3 if case.accepted else 0)
    return trees


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in TABLE]
)
def test_what_the_table_accepts_is_taken(lab: Lab, case: Case, tmp_path: Path) -> None:
    """And nothing else. The tree is that of the two layers, where the table says so."""
    name = f"taken-{TABLE.index(case)}"
    serve(lab, case, name)
    trees = taken(lab, case, name, tmp_path)
    assert not case.same or all(tree == expected(lab.tree) for tree in trees)


def rows() -> Iterator[object]:
    """As parameters. The first of its kind that is accepted, the first that is refused, and those of other trees are for every day."""
    seen: set[tuple[str, bool]] = set()
    for case in TABLE:
        kind = case.name.partition(":")[0], case.accepted
        every_day = not case.slow and (kind not in seen or not case.same)
        seen.add(kind)
        yield pytest.param(case, id=case.name, marks=[] if every_day else [pytest.mark.slow])


@pytest.mark.parametrize("case", list(rows()))
def test_what_the_peers_take_is_taken(lab: Lab, case: Case, tmp_path: Path) -> None:
    """The peers say what the table says of them. The tree is theirs."""
    name = f"case-{TABLE.index(case)}"
    asked = lab.threads.submit(ask_peers, lab, serve(lab, case, name), name, tmp_path)
    trees = taken(lab, case, name, tmp_path)
    peers = asked.result()
    assert case.accepted or not (peers.skopeo and peers.containerd), "both peers take it"
    theirs = lab.tree if case.same else walk(peers.umoci) if peers.umoci else {}
    assert [tree for tree in trees if tree != expected(theirs)] == [], expected(theirs)


@pytest.mark.fuse
@pytest.mark.parametrize(
    "name",
    [
        "index: second of two indexes",
        "index: no platform, an attestation",
        "manifest: names in capitals",
        "layer: zstd called gzip",
        "layer: the blobs called zstd",
        "config: nulls in it",
    ],
)
def test_a_mount_of_it_shows_the_peers_tree(lab: Lab, lazyfs: Lazyfs, name: str) -> None:
    """The command, converted and not."""
    (case,) = (case for case in TABLE if case.name == name)
    for number, layers in enumerate((lab.plain, lab.lazy)):
        content = Content(layers)
        case.make(content)
        repository = f"mount-{TABLE.index(case)}-{number}"
        lab.served.contents[repository] = content
        with lazyfs.mounted(f"docker://{lab.served.host}/{repository}:v1") as directory:
            assert not compare(walk(directory), lab.tree)


@pytest.mark.parametrize(
    "name",
    [
        "index: index four deep",
        "index: no platform, an attestation",
        "layer: gzip called tar",
        "layer: tar called tar",
        "config: nulls in it",
    ],
)
def test_a_pull_of_it_shows_the_peers_tree(lab: Lab, lazyfs: Lazyfs, tmp_path: Path, name: str) -> None:
    """`lazyfs pull` into containerd: all documents on the way are there, and garbage collection leaves them."""
    (case,) = (case for case in TABLE if case.name == name)
    content = Content(lab.plain)
    case.make(content)
    repository = f"pull-{TABLE.index(case)}"
    lab.served.contents[repository] = content
    reference = f"{lab.served.host}/{repository}:v1"
    into = ("--address", lab.containerd.folder / "socket", "--namespace", repository, "--snapshotter", "overlayfs")
    lazyfs.run("pull", reference, *into, "--store", lazyfs.store)
    lab.containerd.ctr("--namespace", repository, "leases", "create", "--id", "collect")
    lab.containerd.ctr("--namespace", repository, "leases", "rm", "--sync", "collect")
    (tmp_path / "root").mkdir()
    lab.containerd.ctr(
        "--namespace", repository, "images", "mount", "--snapshotter", "overlayfs", reference, str(tmp_path / "root")
    )
    try:
        assert not compare(walk(tmp_path / "root"), lab.tree)
    finally:
        run("umount", tmp_path / "root")
