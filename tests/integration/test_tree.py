"""A mounted image shows, entry by entry, what a full pull of the original unpacks to; and so does the converted image to everybody else.

The measure is `umoci unpack`, a program of other people's with another reading of the same specifications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import Lazyfs, run, umoci_unpack
from tests.containerd import Containerd
from tests.images.table import IMAGES
from tests.tree import Record, compare, walk

pytestmark = [pytest.mark.images, pytest.mark.registry]

OWN_NAMES = (b"stargz.index.json", b".no.prefetch.landmark", b".prefetch.landmark")
TREES = ["edge", *(pytest.param(name, marks=pytest.mark.slow) for name in ("debian", "python", "nginx", "scipy"))]
"""The lower layers of edge are debian and python."""
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("busybox", "redis", "node", "gcc", "openjdk")]

Named = Callable[[str], str]


@pytest.fixture(scope="module")
def containerd(session_folder: Path) -> Iterator[Containerd]:
    """One containerd for the module."""
    with Containerd(session_folder / "c") as running:
        yield running


@pytest.mark.fuse
@pytest.mark.umoci
@pytest.mark.parametrize("mode", ["portable", pytest.param("native", marks=pytest.mark.root)])
@pytest.mark.parametrize("name", [*TREES, *OTHERS])
def test_mounted_tree_is_the_unpacked_one(
    name: str, mode: str, lazyfs: Lazyfs, converted: Named, unpacked: Callable[[str], dict[bytes, Record]]
) -> None:
    """Every entry equals, in a first walk with nothing here yet and in a second one with all caches warm.

    Natively that is seen through overlayfs: opaque directories and whiteouts of several layers are the kernel's to apply.
    """
    expected = unpacked(name)
    with lazyfs.mounted(converted(name), "--background", "off", mode=mode) as root:
        assert not compare(expected, walk(root))
        assert not compare(expected, walk(root))


@pytest.mark.umoci
@pytest.mark.parametrize("name", TREES)
def test_converted_image_unpacks_to_the_same_tree(
    name: str, converted: Named, unpacked: Callable[[str], dict[bytes, Record]], tmp_path: Path
) -> None:
    """To umoci the converted image is an ordinary one, with the format's own entries in its root and no others."""
    layout = f"oci:{tmp_path}/layout:v1"
    run("skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", converted(name), layout)
    tree = walk(umoci_unpack(layout, tmp_path / "unpacked"))
    assert {path for path in tree if path in OWN_NAMES} == {b"stargz.index.json", b".no.prefetch.landmark"}
    assert not compare(unpacked(name), tree, ignore=OWN_NAMES)


@pytest.mark.containerd
@pytest.mark.parametrize("name", [*TREES, *OTHERS])
def test_containerd_pulls_and_runs_it(name: str, converted: Named, containerd: Containerd) -> None:
    """To containerd with overlayfs the converted image is an ordinary one, and its program works."""
    pulled = containerd.pull(converted(name))
    # ctr may lose the output of what ends at once.
    probe = ["sh", "-c", '"$@"; code=$?; sleep 0.1; exit $code', "sh", *IMAGES[name].probe]
    assert IMAGES[name].expect in containerd.output(pulled, *probe)


@pytest.mark.fuse
@pytest.mark.root
def test_program_runs_after_a_few_percent(lazyfs: Lazyfs, converted: Named, shared_registry: object) -> None:
    """Python says hello, its root directory in the mount, after less than a tenth of the image was fetched, TOCs included."""
    with lazyfs.mounted(converted("python"), "--background", "off") as root:
        assert run("chroot", root, *IMAGES["python"].probe).stdout == b"hello\n"
        status = lazyfs.json("status", root)
    assert status["received_bytes"] < 0.10 * status["layer_bytes"]
