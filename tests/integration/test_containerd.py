"""containerd and its clients, with lazyfsd as its snapshotter: what is pulled runs, lazy, mixed or not, and nothing is left of it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad.oci import Oci
from tests.commands import run
from tests.containerd import PYTHON_HELLO, Containerd
from tests.docker_registry import Registry
from tests.lazyfsd import moments, object_name
from tests.mixed_image import join, mix
from tests.plugin import NAME, Plugin, plugin_at
from tests.small_image import build_of
from tests.tars import info, written
from tests.tree import Record, compare, walk

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer, pytest.mark.images]

OWN_NAMES = (b"stargz.index.json", b".no.prefetch.landmark", b".prefetch.landmark")
Named = Callable[[str], str]


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    """One for the module: tests have images of their own, and take them away."""
    with plugin_at() as running:
        yield running


@pytest.fixture(scope="module")
def containerd(plugin: Plugin) -> Iterator[Containerd]:
    with Containerd(plugin.folder / "c", {NAME: plugin.socket}) as running:
        yield running


@pytest.fixture(scope="module")
def mixed(images: Named, converted_layout: Named, session_folder: Path, shared_registry: Registry) -> Callable[..., str]:
    """`mixed("python", "lol")` is that image, in the registry, with the layers lazy that have an `l`."""

    def of(name: str, which: str, user: str = "") -> str:
        folder = session_folder / f"{name}-{which}{user}"
        made = mix(images(name), converted_layout(name), [letter == "l" for letter in which], folder, user)
        return shared_registry.push(made, f"mixed/{folder.name}:v1")

    return of


def remove(containerd: Containerd, name: str, plugin: Plugin) -> None:
    """Remove an image, the only one, and see that nothing is left."""
    containerd.ctr("images", "rm", "--sync", name)
    assert containerd.snapshots(NAME) == {}
    folder = plugin.store / "containerd" / "containerd" / "snapshots"
    for _ in moments():
        if not (list(folder.iterdir()) or mounted(plugin)):
            break
    assert list(folder.iterdir()) == []
    assert mounted(plugin) == []


def mounted(plugin: Plugin) -> list[str]:
    """What is mounted, but for the gate, which a service keeps."""
    return [path for path in plugin.left() if path != str(plugin.store / "gate")]


def test_a_lazy_image_is_pulled_and_runs(
    plugin: Plugin, containerd: Containerd, shared_registry: Registry, converted: Named
) -> None:
    """rpull moves a manifest, a config and the TOCs; `ctr run` says hello; nothing is left when the image is removed."""
    reference = converted("python")
    before = len(shared_registry.requests())
    name = containerd.pull_lazily(reference, NAME)
    asked = [request for request in shared_registry.requests()[before:] if request.agent != "lazyfs"]
    assert len([request for request in asked if request.is_blob]) == 1, "containerd asks for the config, and for no layer"
    assert [kind for _, kind in containerd.snapshots(NAME).values()] == ["Committed"] * 3
    assert containerd.output(name, *PYTHON_HELLO, snapshotter=NAME) == "hello\n"
    remove(containerd, name, plugin)


def test_the_plugin_may_have_another_name(converted: Named) -> None:
    """nerdctl sends the labels that make a layer lazy only to snapshotters whose names it knows: `stargz` is one of them."""
    with plugin_at() as plugin, Containerd(plugin.folder / "c", {"stargz": plugin.socket}) as containerd:
        name = containerd.pull_lazily(converted("python"), "stargz")
        assert [row.lazy is not None for row in plugin.rows().values()] == [True] * 3
        assert containerd.output(name, *PYTHON_HELLO, snapshotter="stargz") == "hello\n"
        containerd.prune()
        plugin.await_empty()


@pytest.mark.umoci
@pytest.mark.parametrize(
    ("image", "which"),
    # Of edge, containerd itself unpacks another tree: it drops times before 1970, and lists some whiteouts.
    [
        ("edge", "lllll"),
        ("python", "lol"),
        *(pytest.param("python", which, marks=pytest.mark.slow) for which in ("olo", "ool", "ooo")),
    ],
)
def test_mixed_images_show_the_unpacked_tree(
    image: str,
    which: str,
    plugin: Plugin,
    containerd: Containerd,
    mixed: Callable[[str, str], str],
    unpacked: Callable[[str], dict[bytes, Record]],
    tmp_path: Path,
) -> None:
    """Lazy and unpacked layers in every order are one tree: opaque directories, whiteouts and implied directories included."""
    name = containerd.pull_lazily(mixed(image, which), NAME)
    rows = plugin.rows().values()
    assert len([row for row in rows if row.lazy]) == which.count("l")
    (status,) = plugin.status()["containerds"]
    assert (len(status["lazy"]), status["unpacked"]) == (which.count("l"), which.count("o"))
    assert [each["reason"] for each in status["refused"]] == [
        "has no TOC digest in its manifest: it was not converted"
    ] * which.count("o")
    with containerd.shown(NAME, tmp_path / "view") as root:
        assert not compare(unpacked(image), walk(root), ignore=OWN_NAMES)
    remove(containerd, name, plugin)


def test_users_are_found_in_a_lazy_root(mixed: Callable[..., str]) -> None:
    """An image's USER is looked up in its own passwd; with ids mapped, every file belongs to somebody else, and none is fetched."""
    with plugin_at(background=False) as plugin, Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd:
        name = containerd.pull_lazily(mixed("python", "lll", "www-data"), NAME)
        run_as = ["run", "--rm", "--snapshotter", NAME]
        assert b"uid=33(www-data)" in containerd.ctr(*run_as, name, "user", "sh", "-c", "id; sleep 0.1").stdout
        before = plugin.kept()
        maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
        script = "id -u; stat -c %u:%g /etc/passwd; python3 -c 'print(1)'; sleep 0.1"
        assert containerd.ctr(*run_as, *maps, name, "mapped", "sh", "-c", script).stdout == b"33\n0:0\n1\n"
        assert plugin.kept() - before < 1000, "a chown of 9,000 files brings none of them"
        remove(containerd, name, plugin)


def test_what_a_container_changed_can_be_committed(containerd: Containerd, plugin: Plugin, converted: Named) -> None:
    """Its snapshot becomes a layer that others stand on; and containerd's differ tells what it has changed, without reading the rest."""
    name = containerd.pull_lazily(converted("python"), NAME)
    script = "rm /etc/hostname; echo changed > /etc/issue; mv /usr/share/doc /usr/share/documents; chmod 700 /usr/bin/python3.11"
    containerd.ctr("run", "--snapshotter", NAME, name, "changer", "sh", "-c", script)
    snapshots = ["snapshots", "--snapshotter", NAME]
    tree = containerd.ctr(*snapshots, "diff", "changer").stdout
    assert tarred(tree) >= {"etc/.wh.hostname", "etc/issue", "usr/share/.wh.doc", "usr/bin/python3.11"}
    containerd.ctr(*snapshots, "commit", "changed", "changer")
    containerd.ctr(*snapshots, "label", "changed", "containerd.io/gc.root=now")
    containerd.ctr("containers", "rm", "changer")
    with containerd.shown(NAME, plugin.folder / "changed", "changed") as root:
        assert not (root / "etc/hostname").exists()
        assert (root / "etc/issue").read_text() == "changed\n"
        assert (root / "usr/share/documents/base-files").is_dir()
        assert (root / "usr/bin/python3.11").stat().st_mode & 0o777 == 0o700
        assert run("chroot", root, *PYTHON_HELLO).stdout == b"hello\n"
    containerd.ctr(*snapshots, "rm", "changed")
    remove(containerd, name, plugin)


def test_an_unpacked_layer_cannot_name_an_object(
    containerd: Containerd, plugin: Plugin, shared_registry: Registry, tmp_path: Path
) -> None:
    """An ordinary layer whose files carry overlayfs' own attributes, on a lazy one, gets none of what is in the store.

    containerd 1.6 and 2.4 refuse to set such attributes; that of another unpacker, which does, is tried by hand.
    """
    secret = b"of another image" * 100
    lazy = build_of(tmp_path / "lazy", {"secret": secret, "other": b"x"})
    attributes = {"trusted.overlay.metacopy": "\0\4\0\0", "trusted.overlay.redirect": f"/{object_name(secret)}", "user.kept": "1"}
    attack = Oci(tmp_path / "attack")
    thief = info("thief", size=len(secret), pax_headers={f"SCHILY.xattr.{name}": value for name, value in attributes.items()})
    attack.image(attack.plain(written((thief, bytes(len(secret))))))
    image = shared_registry.push(join([lazy.converted, f"oci:{attack.path}:v1"], tmp_path / "both"), "attack:v1")
    name = containerd.pull_lazily(image, NAME)
    snapshots = ["snapshots", "--snapshotter", NAME]
    (base,) = [key for key, (parent, _) in containerd.snapshots(NAME).items() if not parent]
    containerd.ctr(*snapshots, "prepare", "extract-1-x hand", base)
    (row,) = [row for row in plugin.rows().values() if row.kind == "active"]
    again = plugin.store / "containerd" / "containerd" / "snapshots" / str(row.id) / "fs" / "thief"
    again.write_bytes(bytes(len(secret)))
    for key, value in attributes.items():
        os.setxattr(again, key, value.encode())
    containerd.ctr(*snapshots, "commit", "by hand", "extract-1-x hand")
    containerd.ctr(*snapshots, "label", "by hand", "containerd.io/gc.root=now")
    (pulled,) = [key for key, (parent, _) in containerd.snapshots(NAME).items() if parent and key != "by hand"]
    for number, parent in enumerate((pulled, "by hand")):
        with containerd.shown(NAME, tmp_path / f"view-{number}", parent) as root:
            assert (root / "secret").read_bytes() == secret
            assert (root / "thief").read_bytes() == bytes(len(secret))
            assert os.listxattr(root / "thief") == ["user.kept"]
    containerd.ctr(*snapshots, "rm", "by hand")
    remove(containerd, name, plugin)


def tarred(data: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return set(tar.getnames())
