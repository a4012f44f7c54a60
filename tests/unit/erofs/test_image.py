"""Images of single layers: sound to fsck.erofs, and to the kernel what their entries say; and what no image can hold."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from lazyfs.erofs.image import WRITER_VERSION, write_image
from lazyfs.errors import InvalidToc
from lazyfs.format.entry import Chunk, Entry
from lazyfs.store.content import content_of
from tests.metadata_images import check, image_of, mounted
from tests.tree import Record, walk


def chunks(size: int, count: int = 1) -> tuple[Chunk, ...]:
    """`count` chunks of `size` bytes; each count has other digests."""
    return tuple(Chunk(index * size, size, bytes([count]) * 32, 0, 0, 1) for index in range(count))


def file(name: bytes, size: int = 0, **facts: object) -> Entry:
    """A regular file of one chunk."""
    return Entry(name, "reg", size=size, chunks=chunks(size) if size else (), **facts)  # type: ignore[arg-type]


def seen(entries: list[Entry], folder: Path) -> dict[bytes, Record]:
    """What the kernel shows of the image alone, which is sound."""
    image = folder / "image"
    image.write_bytes(image_of(entries))
    check(image)
    with mounted(image, folder / "mount") as at:
        return walk(at)


@pytest.mark.erofs
def test_every_type_is_what_its_entry_says(tmp_path: Path) -> None:
    """Types, modes, owners, nanoseconds before and after 1970, device numbers, targets; the root's own attributes."""
    found = seen(
        [
            Entry(b"", "dir", mode=0o1750, uid=1, gid=2, mtime_ns=3),
            Entry(b"d", "dir", mode=0o2755, mtime_ns=-1),
            Entry(b"d/char", "char", mode=0o600, major=4095, minor=0xFFFFF),
            Entry(b"d/block", "block", mode=0o660, major=8, minor=257),
            Entry(b"d/beyond", "block", mode=0o660, major=(1 << 12) + 7, minor=(1 << 20) + 9),
            Entry(b"d/fifo", "fifo", mode=0o622),
            Entry(b"d/link", "symlink", mode=0o644, link=b"../\xff \n", mtime_ns=-(10**18) - 5),
            Entry(b"far", "symlink", mode=0, link=b"t" * 4095),
            Entry(b"suid", "reg", mode=0o4755, uid=2**32 - 2, gid=2**32 - 2, mtime_ns=2**62 + 7),
        ],
        tmp_path,
    )
    assert found[b"."][1:6] == (0o1750, 1, 2, 0, 3)
    assert found[b"d"][:6] == ("dir", 0o2755, 0, 0, 0, -1)
    assert (found[b"d/char"].type, found[b"d/char"].rdev, found[b"d/char"].mode) == ("char", (4095, 0xFFFFF), 0o600)
    assert (found[b"d/block"].type, found[b"d/block"].rdev) == ("block", (8, 257))
    assert (found[b"d/fifo"].type, found[b"d/fifo"].mode) == ("fifo", 0o622)
    assert found[b"d/beyond"].rdev == (7, 9)  # what mknod keeps of the numbers
    assert (found[b"d/link"].link, found[b"d/link"].mtime_ns) == (b"../\xff \n", -(10**18) - 5)
    assert found[b"d/link"].mode == found[b"far"].mode == 0o777  # of a link, Linux keeps no mode
    assert found[b"suid"][:6] == ("reg", 0o4755, 2**32 - 2, 2**32 - 2, 0, 2**62 + 7)
    assert len(found) == 9


@pytest.mark.erofs
def test_a_file_leads_to_its_object(tmp_path: Path) -> None:
    """Size, and the two attributes that overlayfs follows; an empty file has none of them, for it has no object."""
    several = Entry(b"several", "reg", size=12, chunks=chunks(4, 3))
    found = seen([file(b"one", 5), several, file(b"empty")], tmp_path)
    for path, entry in {b"one": file(b"one", 5), b"several": several}.items():
        redirect = b"/" + content_of(entry.chunks).name.encode()
        assert found[path].xattrs == (("trusted.overlay.metacopy", b""), ("trusted.overlay.redirect", redirect))
        assert found[path].size == entry.size
    assert (found[b"empty"].size, found[b"empty"].xattrs) == (0, ())


def test_a_file_of_many_terabytes_takes_a_few_bytes() -> None:
    """One hole for each 8 TiB: nothing grows with what a size claims."""
    size = 1 << 45
    entry = Entry(b"huge", "reg", size=size, chunks=(Chunk(0, size, bytes(32), 0, 0, 1),))
    assert len(image_of([entry])) == 4096


@pytest.mark.erofs
def test_files_of_many_terabytes_have_their_size(tmp_path: Path) -> None:
    """A size of several holes is a sound file of that size."""
    image = tmp_path / "image"
    size = (1 << 45) + 1
    image.write_bytes(image_of([Entry(b"huge", "reg", size=size, chunks=(Chunk(0, size, bytes(32), 0, 0, 1),))]))
    with mounted(image, tmp_path / "mount") as at:
        assert (at / "huge").stat().st_size == size


@pytest.mark.erofs
def test_hard_links_are_one_inode(tmp_path: Path) -> None:
    """Names in several directories share it, and it counts them."""
    entries = [
        file(b"a/x", 5),
        Entry(b"b/y", "hardlink", link=b"a/x"),
        Entry(b"z", "hardlink", link=b"a/x"),
        Entry(b"s", "symlink", link=b"t"),
        Entry(b"s2", "hardlink", link=b"s"),
    ]
    image = tmp_path / "image"
    image.write_bytes(image_of(entries))
    check(image)
    with mounted(image, tmp_path / "mount") as at:
        for names in (["a/x", "b/y", "z"], ["s", "s2"]):
            facts = {((at / name).lstat().st_ino, (at / name).lstat().st_nlink) for name in names}
            assert len(facts) == 1 and facts.pop()[1] == len(names)


@pytest.mark.erofs
def test_directories_of_any_size_list_and_find_all_their_names(tmp_path: Path) -> None:
    """Around each block's end, with short names and with the longest: every name is listed, and every name is found."""
    for length, counts in {1: (1, 2), 3: (268, 269, 270, 271), 255: (14, 15, 16, 29, 30, 31, 3000)}.items():
        for count in counts:
            names = [b"%0*d" % (length, number) for number in range(count)]
            found = seen([file(b"d/" + name) for name in names], tmp_path)
            assert {path for path in found if path.startswith(b"d/")} == {b"d/" + name for name in names}


@pytest.mark.erofs
def test_a_directory_of_hundreds_of_thousands_of_names(tmp_path: Path) -> None:
    """It is sound; names from its whole length are found, and one that is not there is not."""
    image = tmp_path / "image"
    with open(image, "wb") as target:
        write_image([file(b"d/%d" % number) for number in range(300_000)], target)
    check(image)
    with mounted(image, tmp_path / "mount") as at:
        assert len(list((at / "d").iterdir())) == 300_000
        assert all((at / "d" / str(number)).exists() for number in range(0, 300_000, 999))
        assert not (at / "d" / "300000").exists()


@pytest.mark.erofs
def test_symbolic_links_of_every_length(tmp_path: Path) -> None:
    """Up to PATH_MAX, with and without attributes in front of the target, wherever in a block they come to lie."""
    attributes = ((b"trusted.x", b"v" * 3000),)
    entries = [
        Entry(b"%d-%d" % (length, bool(xattrs)), "symlink", link=b"t" * length, xattrs=xattrs)
        for length in (1, 31, 900, 961, 1000, 1001, 2000, 4000, 4031, 4032, 4033, 4095)
        for xattrs in ((), attributes)
    ]
    found = seen(entries, tmp_path)
    for entry in entries:
        assert (found[entry.name].link, found[entry.name].size) == (entry.link, len(entry.link))
        assert len(found[entry.name].xattrs) == len(entry.xattrs)


@pytest.mark.erofs
def test_attributes_up_to_what_erofs_can_store(tmp_path: Path) -> None:
    """Names of 255 bytes, values up to 65,535, of all namespaces that file systems have; on each type that may carry them."""
    longest = b"user." + b"n" * 250
    many = (
        (b"trusted.t", b""),
        (b"security.capability", b"\1\0\0\2" + bytes(16)),
        (longest, b"v" * 65535),
        (b"user.b", b"\0\xff"),
    )
    found = seen([Entry(b"", "dir", xattrs=many), Entry(b"f", "reg", xattrs=many), Entry(b"d", "dir", xattrs=many)], tmp_path)
    for path in (b".", b"f", b"d"):
        assert found[path].xattrs == tuple(sorted((key.decode(), value) for key, value in many))


@pytest.mark.erofs
def test_access_lists_are_stored_as_such(tmp_path: Path) -> None:
    """The kernel reads POSIX ACLs back, and an access list's bits rule."""
    access = bytes.fromhex("02000000 01000600ffffffff 02000500e8030000 04000400ffffffff 10000500ffffffff 20000400ffffffff")
    found = seen([file(b"f", mode=0o654, xattrs=((b"system.posix_acl_access", access),))], tmp_path)
    assert found[b"f"].xattrs == (("system.posix_acl_access", access),)


@pytest.mark.erofs
def test_attributes_that_no_file_system_takes_are_left_out(tmp_path: Path) -> None:
    """Of unknown namespaces, or without a name behind the prefix."""
    xattrs = ((b"btrfs.compression", b"zstd"), (b"system.nfs4_acl", b"x"), (b"user.", b"x"), (b"user.kept", b"x"), (b"x", b"x"))
    assert seen([file(b"f", xattrs=xattrs)], tmp_path)[b"f"].xattrs == (("user.kept", b"x"),)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (file(b"f", xattrs=((b"user.x", b"v" * 65536),)), "user.x.*65536"),
        (file(b"f", xattrs=tuple((b"user.%d" % number, b"v" * 60000) for number in range(5))), "300040 bytes of extended"),
        (Entry(b"f", "symlink", link=b"t" * 4096), "4096 bytes"),
        (Entry(b"f", "reg", size=5), "chunks"),
        (Entry(b"f", "reg", size=6, chunks=chunks(5)), "has 6 bytes, and its chunks 5"),
        (Entry(b"n" * 256, "reg"), "255"),
    ],
)
def test_what_no_image_can_hold_is_refused_in_words(entry: Entry, says: str) -> None:
    """InvalidToc names the entry, and what is too large."""
    with pytest.raises(InvalidToc, match=says):
        write_image([entry], io.BytesIO())


def test_equal_entries_give_equal_bytes() -> None:
    """In any order of files within their directories, since images are sorted."""
    entries = [Entry(b"d", "dir"), file(b"d/a", 1), file(b"d/b", 2), file(b"e/c", 3), file(b"e/.wh.x")]
    assert image_of(entries) == image_of(entries[:1] + entries[:0:-1])


def test_an_empty_layer_has_a_root() -> None:
    """One block: superblock and root."""
    assert len(image_of([])) == 4096


@pytest.mark.erofs
def test_an_image_is_sound_wherever_its_last_inode_ends(tmp_path: Path) -> None:
    """fsck.erofs looks behind the last inode, even where that is the end of its block."""
    for count in range(85, 93):
        seen([Entry(b"%02d" % number, "fifo") for number in range(count)], tmp_path)


def test_another_image_has_another_version() -> None:
    """Images are stored by the writer's version: a change of its output changes both numbers here."""
    entries = [
        Entry(b"d", "dir", mtime_ns=1, xattrs=((b"trusted.overlay.x", b"1"), (b"user.x", b"2"))),
        file(b"d/f", 5),
        Entry(b"d/g", "hardlink", link=b"d/f"),
        Entry(b"d/l", "symlink", link=b"f"),
        Entry(b"l", "symlink", link=b"t" * 4095),
        Entry(b"c", "char", major=5, minor=1),
        file(b"o/.wh..wh..opq"),
        file(b"o/n"),
        file(b"w/.wh.x"),
        file(b"w/e"),
        *(file(b"large/%d" % number) for number in range(300)),
    ]
    assert (WRITER_VERSION, hashlib.sha256(image_of(entries)).hexdigest()[:16]) == (3, "5b31645142c92fab")
