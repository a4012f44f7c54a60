"""Overlays of EROFS images and data-only layers, mounted by the kernel: what a native mount rests on."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from lazyfs.containerd.mounts import SnapshotFolders
from lazyfs.containerd.roots import Roots
from lazyfs.format.entry import Entry
from lazyfs.format.platform import parse_platform
from lazyfs.image.image import load_layers, resolve_image
from lazyfs.kernel.mountinfo import mounted_at
from lazyfs.kernel.mounting import unmount
from lazyfs.mount.table import find_mount
from lazyfs.native.layers import LayerMounts
from lazyfs.native.metadata import LayerMetadata, ensure_metadata
from lazyfs.native.probe import probe
from lazyfs.native.stack import mount_stack, open_stack, reconfigure, source_of, unmount_stack
from lazyfs.registry.access import AccessOptions
from lazyfs.source.open import open_source
from lazyfs.source.reference import parse_reference
from lazyfs.store.store import Store
from tests.commands import Lazyfs, run
from tests.images.table import IMAGES
from tests.lazyfsd import moments
from tests.native_stack import Workshop, regular, workshop
from tests.tree import Record, compare, walk

pytestmark = pytest.mark.root

MEMORY = Path("/dev/shm")
"""A tmpfs: the kernel mounts no EROFS file that lies there, so it takes a loop device."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workshop]:
    """A workshop on a disk."""
    with workshop(tmp_path) as made:
        yield made


async def metadata_of(reference_text: str, store: Path) -> tuple[Path, ...]:
    """The EROFS images of an image that `store` holds."""
    reference = parse_reference(reference_text)
    source = open_source(reference, AccessOptions(None, plain_http=False))
    with Store.open(store) as opened:
        image = await resolve_image(source, reference.selector, parse_platform("linux/amd64"), opened)
        layers = await load_layers(source, opened, image)
        await source.aclose()
    return ensure_metadata(store, [LayerMetadata(layer.toc_digest, layer.toc_offset) for layer in layers])


@pytest.mark.fuse
@pytest.mark.umoci
@pytest.mark.images
@pytest.mark.registry
@pytest.mark.parametrize("name", [pytest.param("python", marks=pytest.mark.slow), "edge"])
def test_complete_image_without_a_gate(
    name: str, lazyfs: Lazyfs, converted: Callable[[str], str], unpacked: Callable[[str], dict[bytes, Record]], tmp_path: Path
) -> None:
    """Every entry is the one that a full pull unpacks to, and the image's program runs, with no process of ours there."""
    expected = unpacked(name)
    with lazyfs.mounted(converted(name), "--background", "wait"):
        pass
    images = trio.run(metadata_of, converted(name), lazyfs.store)
    at, layers = tmp_path / "at", LayerMounts(lazyfs.store)
    at.mkdir()
    try:
        data = [lazyfs.store / "objects", lazyfs.store / "arrived"]
        mount_stack(at, open_stack(layers.mounted(images).roots, data, source=source_of(name), read_only=True))
        assert not compare(expected, walk(at))
        assert IMAGES[name].expect in run("chroot", at, *IMAGES[name].probe).stdout.decode()
    finally:
        unmount_stack(at, lazy=True)
        layers.unmount_unused()
    assert not list((lazyfs.store / "layers").iterdir())


@pytest.mark.parametrize("folder", [None, MEMORY], ids=["disk", "memory"])
def test_many_layers(folder: Path | None, tmp_path: Path) -> None:
    """128 layers are one tree, and leave neither a mount nor a loop device; where the kernel cannot mount files, 128 of those are there."""
    with workshop(folder or tmp_path) as place:
        images = [place.image(f"{number}", {b"same": b"%d" % number, b"own-%d" % number: b"x"}) for number in range(128)]
        with place.mounted(images) as at:
            assert (at / "same").read_bytes() == b"127"
            assert len(os.listdir(at)) == 129
            assert {(at / f"own-{number}").read_bytes() for number in range(128)} == {b"x"}
            loops = [line for line in place.left() if "/erofs/" in line]
            assert len(loops) == (128 if folder else 0)
            unmount_stack(at)
            place.layers.unmount_unused()
            # Where udev runs, it opens each new loop device for a look, and the device goes after that.
            assert any(not place.left() for _ in moments()), place.left()
            assert not list((place.store / "layers").iterdir())


@pytest.mark.parametrize("folder", [None, MEMORY], ids=["disk", "memory"])
def test_a_loop_device_only_where_it_must_be(folder: Path | None, tmp_path: Path) -> None:
    """On a disk the image's file itself is the source of its mount, in memory a loop device is; the trial mount says the same."""
    with workshop(folder or tmp_path) as place, place.mounted([place.image("image", {b"a": b"b"})]):
        mount = mounted_at(place.store / "layers" / "image")
        assert mount is not None
        assert mount.source.startswith("/dev/loop") == (folder is not None)
        assert probe(place.store).file_backed == (folder is None)


@pytest.mark.parametrize("name", ["a:b", "a,b", "a b", "a\\b", "a\\,b", "a\nb", "\udcff", "a" * 255, f"{'a' * 200}/{'b' * 200}"])
def test_odd_paths(name: str, tmp_path: Path) -> None:
    """A store and an upper directory may be called anything that a directory may be called, of any length."""
    (tmp_path / name).mkdir(parents=True)
    with workshop(tmp_path / name) as place:
        upper, work = place.store / "upper:,", place.store / "work"
        upper.mkdir()
        work.mkdir()
        with place.mounted([place.image("a:b,c", {b"file": b"content"})], upper=upper, work=work) as at:
            assert (at / "file").read_bytes() == b"content"
            (at / "new").write_bytes(b"written")
            mounted = find_mount(at)
            assert mounted is not None
            assert (mounted.image, mounted.mode) == ("test", "native")
            assert mounted.store in {place.store, None if len(os.fsencode(place.store)) > 200 or "\\" in name else place.store}
            unmount_stack(at)
            place.layers.unmount_unused()
            assert not place.left()
        assert (upper / "new").read_bytes() == b"written"


def test_a_layer_twice(place: Workshop) -> None:
    """An image may name one layer several times; what it shows is what its uppermost place would show."""
    twice = place.image("twice", {b"a": b"twice", b"b": b"twice"}, [Entry(b".wh.c", "reg")])
    between = place.image("between", {b"a": b"between", b"c": b"between"}, [Entry(b".wh.b", "reg")])
    with place.mounted([twice, between, twice]) as at:
        assert {path.name: path.read_bytes() for path in at.iterdir()} == {"a": b"twice", "b": b"twice"}


def test_no_layers(place: Workshop) -> None:
    """An image without layers is an empty tree."""
    with place.mounted([]) as at:
        assert not list(at.iterdir())
        assert stat.S_IMODE(at.stat().st_mode) == 0o755
        unmount_stack(at)
    assert not place.left()


def test_suid_and_devices(place: Workshop) -> None:
    """A root file system needs both: the overlay allows them, although the mount points of its layers do not."""
    image = place.image("image", {}, [Entry(b"null", "char", mode=0o666, major=1, minor=3), regular(b"suid", b"s", 0o4755)])
    with place.mounted([image]) as at:
        assert (at / "null").write_bytes(b"gone") == 4
        assert stat.S_IMODE((at / "suid").stat().st_mode) == 0o4755
        assert not os.statvfs(at).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)


def test_inode_numbers_fit_everywhere(place: Workshop) -> None:
    """lazyfs/docs/SEMANTICS.md promises: 32-bit programs can stat everything; hard links are one file; directories are all of one file system."""
    files = [regular(b"d/file", b"x"), Entry(b"d/link", "hardlink", link=b"d/file")]
    with place.mounted([place.image("low", {b"d/low": b"y"}), place.image("high", {}, files)]) as at:
        stats = {path.name: path.lstat() for path in [at, *at.rglob("*")]}
    assert all(status.st_ino < 1 << 32 for status in stats.values())
    assert (stats["file"].st_dev, stats["file"].st_ino) == (stats["link"].st_dev, stats["link"].st_ino)
    assert (stats["file"].st_dev, stats["file"].st_ino) != (stats["low"].st_dev, stats["low"].st_ino)
    assert stats["d"].st_dev == stats["at"].st_dev


def test_objects_come_before_what_has_arrived(place: Workshop) -> None:
    """The first data layer that has a file serves it; once looked up, that stays until the overlay is made to look again."""
    name = place.keep(b"content")
    (place.data[0] / name).unlink()
    image = place.image("image", {}, [regular(b"file", b"content")])
    with place.mounted([image]) as at:
        with (at / "file").open("rb") as held:
            assert (at / "file").read_bytes() == b"content"
            (place.data[0] / name).write_bytes(b"CONTENT")
            assert (at / "file").read_bytes() == b"content"
            reconfigure(at)
            assert (at / "file").read_bytes() == b"content", "an open file is held"
            assert held.read() == b"content"
        reconfigure(at)
        assert (at / "file").read_bytes() == b"CONTENT"


def test_a_writable_mount_looks_again_too(place: Workshop) -> None:
    """It stays writable, and what was written stays."""
    upper, work = place.store / "upper", place.store / "work"
    upper.mkdir()
    work.mkdir()
    with place.mounted([place.image("image", {b"dir/file": b"content"})], upper=upper, work=work, volatile=True) as at:
        (at / "dir").rename(at / "moved")
        os.chmod(at / "moved/file", 0o600)
        reconfigure(at)
        (at / "new").write_bytes(b"new")
        assert (at / "moved/file").read_bytes() == b"content"
        assert sorted(os.listdir(at)) == ["moved", "new"]


def test_busy_mounts_are_left(place: Workshop) -> None:
    """A busy overlay is refused, and goes on; detached, it works for who holds it, and its layers are dropped when he lets go."""
    image = place.image("image", {b"file": b"content"})
    with place.mounted([image]) as at:
        with (at / "file").open("rb") as held:
            with pytest.raises(OSError) as refused:
                unmount_stack(at)
            assert refused.value.errno == errno.EBUSY
            place.layers.unmount_unused()
            assert len(place.left()) == 2
            unmount_stack(at, lazy=True)
            assert os.pread(held.fileno(), 9, 0) == b"content"
        place.layers.unmount_unused()
        assert not place.left()


def test_layers_are_shared_and_dropped(place: Workshop) -> None:
    """Two overlays of one image are stacked on one mount of it, which outlives the first; a process that starts anew finds it."""
    image, other = place.image("image", {b"file": b"content"}), place.store / "other"
    other.mkdir()
    with place.mounted([image]) as at:
        again = LayerMounts(place.store)
        mount_stack(other, open_stack(again.mounted([image]).roots, place.data, source=source_of("other")))
        try:
            assert (at / "file").stat().st_ino == (other / "file").stat().st_ino
            unmount_stack(at)
            again.unmount_unused()
            assert mounted_at(place.store / "layers" / "image")
            assert (other / "file").read_bytes() == b"content"
        finally:
            unmount_stack(other)
    assert not place.left()


def test_a_store_behind_a_link(place: Workshop, tmp_path: Path) -> None:
    """Layers are mounted once and dropped, whatever the store is called by whom."""
    (tmp_path / "link").symlink_to(place.store)
    image = place.image("image", {b"file": b"content"})
    with place.mounted([image]):
        linked = LayerMounts(tmp_path / "link")
        assert linked.mounted([image]) == place.layers.mounted([image])
        assert len(place.left()) == 2
    assert not place.left()


def test_only_ours_is_unmounted(place: Workshop) -> None:
    """What is not a mount of ours is neither unmounted nor reconfigured, least of all what lies over one of ours."""
    for call in (unmount_stack, reconfigure):
        with pytest.raises(OSError, match="not a native lazyfs mount"):
            call(place.at)
    with place.mounted([place.image("image", {b"file": b"content"})]) as at:
        run("mount", "-t", "tmpfs", "above", at)
        try:
            for call in (unmount_stack, reconfigure):
                with pytest.raises(OSError, match="not a native lazyfs mount"):
                    call(at)
        finally:
            unmount(at)
        assert (at / "file").read_bytes() == b"content"


def test_a_failed_mount_leaves_nothing(place: Workshop) -> None:
    """A directory that is not there, a damaged image, an upper inside of a layer: said in words, and nothing is mounted."""
    image, damaged = place.image("image", {b"file": b"content"}), place.store / "erofs" / "damaged"
    damaged.write_bytes(bytes(8192))
    with pytest.raises(OSError, match="erofs"):
        place.layers.mounted([image, damaged])
    roots = place.layers.mounted([image]).roots
    mount = partial(open_stack, source=source_of("x"))
    with pytest.raises(OSError, match=r"datadir.*missing"):
        mount(roots, [place.store / "missing"])
    with pytest.raises(OSError, match="overlay"):
        mount(roots, place.data, upper=roots[0], work=roots[0])
    place.layers.unmount_unused()
    assert not place.left()


def test_long_names_are_cut(place: Workshop) -> None:
    """An image's name that is longer than the kernel takes is cut, always alike, so that its mount is found by it."""
    name = "docker://" + "ü" * 200
    mount_stack(
        place.at, open_stack(place.layers.mounted([place.image("image", {b"a": b"b"})]).roots, place.data, source=source_of(name))
    )
    try:
        mounted = find_mount(place.at)
        assert mounted is not None
        assert source_of(name) == f"lazyfs:{mounted.image}"
        assert len(os.fsencode(source_of(name))) == 255
    finally:
        unmount_stack(place.at)
        place.layers.unmount_unused()


def test_libraries_are_executable(place: Workshop) -> None:
    """What a data layer serves can be mapped with the right to execute, as the dynamic linker does it."""
    library = next(Path("/usr/lib").rglob("libz.so.1.*"))
    with place.mounted([place.image("image", {b"lib.so": library.read_bytes()})]) as at:
        assert ctypes.CDLL(str(at / "lib.so")).zlibVersion


def test_two_containerds_hold_a_layer_each(place: Workshop) -> None:
    """Snapshots of two containerds have the same numbers: what one lets go of, the other still holds."""
    first, second = (Roots(place.store, SnapshotFolders(place.store / name), place.layers) for name in ("first", "second"))
    image = place.image("image", {b"a": b"b"})
    (root,) = first.lower(1, [image])
    assert second.lower(1, [image]) == (root,)
    first.unmount(1)
    assert (root / "a").exists()
    second.unmount(1)
    assert not root.exists()
