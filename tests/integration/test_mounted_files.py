"""What a program sees in a mount, beside what tests/integration/test_tree.py compares entry by entry with a full pull."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import Lazyfs, run
from tests.small_image import SmallImage, large_file, small_file

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def root(small: SmallImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small image, mounted."""
    lazyfs = Lazyfs(tmp_path_factory.mktemp("mounted"))
    with lazyfs.mounted(small.converted) as directory:
        yield directory


def test_all_files_read_back(root: Path, small: SmallImage) -> None:
    """Every byte of every file, whole and in pieces that cross the chunks' borders."""
    for name, data in small.files.items():
        assert (root / name).read_bytes() == data
    data = small.files[large_file(7)]
    with (root / large_file(7)).open("rb", buffering=0) as file:
        for offset in range(0, len(data), 50_001):
            assert os.pread(file.fileno(), 70_000, offset) == data[offset : offset + 70_000]
        assert os.pread(file.fileno(), 10, len(data)) == b""


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "new").touch(),
        lambda root: (root / "new").mkdir(),
        lambda root: (root / "new").symlink_to("x"),
        lambda root: os.mkfifo(root / "new"),
        lambda root: os.link(root / "first", root / "new"),
        lambda root: (root / "first").rename(root / "new"),
        lambda root: (root / "first").unlink(),
        lambda root: (root / "run").rmdir(),
        lambda root: (root / "first").chmod(0o600),
        lambda root: os.chown(root / "first", 1, 1),
        lambda root: os.utime(root / "first"),
        lambda root: os.truncate(root / "first", 0),
        lambda root: (root / "first").open("r+b"),
        lambda root: (root / "first").open("ab"),
        lambda root: os.setxattr(root / "first", "user.x", b""),
        lambda root: os.removexattr(root / "attributed", "user.colour"),
    ],
)
def test_read_only(change: Callable[[Path], object], root: Path) -> None:
    """Whatever would change something is refused as on every read-only file system."""
    with pytest.raises(OSError) as caught:
        change(root)
    assert caught.value.errno == errno.EROFS


def test_what_is_not_there(root: Path) -> None:
    """Names without files, files used as directories, attributes that are not: the usual errors, also the second time."""
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            (root / "gone").stat()
        with pytest.raises(NotADirectoryError):
            (root / "first" / "below").stat()
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(root / "first", "user.colour")
    assert os.listxattr(root) == []
    assert (root / "first/..").exists() is False
    assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == []


def test_directories_list_themselves_and_their_parents(root: Path) -> None:
    """`.` and `..` come first, as readdir gives them."""
    for folder, parent in ((root / "etc/conf.d", root / "etc"), (root / "etc", root)):
        names = run("ls", "-a1U", "-i", folder).stdout.decode().split()
        assert names[1:4:2] == [".", ".."]
        assert [int(number) for number in names[0:4:2]] == [folder.stat().st_ino, parent.stat().st_ino]
    assert (root / "etc/conf.d/..").stat().st_ino == (root / "etc").stat().st_ino


def test_many_names_in_one_directory(root: Path, small: SmallImage) -> None:
    """A directory that takes several reads is listed whole and once."""
    for folder in (root / "etc/conf.d").iterdir():
        names = os.listdir(folder)
        assert sorted(names) == sorted(
            name.rpartition("/")[2] for name in small.files if name.startswith(f"etc/conf.d/{folder.name}/")
        )


def test_hard_links(root: Path) -> None:
    """Two names of one file are one inode with two links; equal files are two."""
    tool, link = (root / "bin/tool").stat(), (root / "bin/link").stat()
    assert tool.st_ino == link.st_ino and tool.st_nlink == link.st_nlink == 2
    assert (root / "first").stat().st_nlink == 1
    assert (root / "etc").stat().st_nlink == 3 and (root / "etc/conf.d").stat().st_nlink == 9
    inodes = {path.lstat().st_ino for path in root.rglob("*")}
    assert len(inodes) == len(list(root.rglob("*"))) - 1


def test_attributes(root: Path, small: SmallImage) -> None:
    """Modes with their special bits, sizes, blocks, times, devices, links, extended attributes."""
    assert stat.filemode((root / "bin/tool").stat().st_mode) == "-rwsr-xr-x"
    assert stat.filemode((root / "run").stat().st_mode) == "drwxrwxrwt"
    assert stat.filemode((root / "run/pipe").stat().st_mode) == "prw-r--r--"
    assert stat.filemode((root / "bin/symlink").lstat().st_mode) == "lrwxrwxrwx"
    assert (root / "bin/symlink").lstat().st_size == len("tool")
    device = (root / "dev/null").stat()
    assert stat.S_ISCHR(device.st_mode) and device.st_rdev == os.makedev(1, 3)
    status = (root / small_file(5)).stat()
    assert (status.st_size, status.st_blocks, status.st_mtime_ns) == (
        len(small.files[small_file(5)]),
        -(-status.st_size // 512),
        1_700_000_000 * 10**9,
    )
    assert os.getxattr(root / "attributed", "user.colour") == b"blue" and os.listxattr(root / "attributed") == ["user.colour"]


def test_statfs(root: Path, small: SmallImage) -> None:
    """The size of the image, nothing free, names of 255 bytes."""
    status = os.statvfs(root)
    assert status.f_blocks * status.f_frsize >= sum(map(len, small.files.values())) - len(small.files["bin/link"])
    assert status.f_bfree == status.f_bavail == status.f_ffree == 0 and status.f_namemax == 255
    assert status.f_files == len({path.lstat().st_ino for path in root.rglob("*")}) + 1
    assert status.f_flag & os.ST_RDONLY


@pytest.mark.root
def test_root_mounts_with_suid_and_devices(root: Path) -> None:
    """For root the mount is what a container's root file system is: devices open, suid counts, everybody may enter."""
    flags = os.statvfs(root).f_flag
    assert not flags & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
    with (root / "dev/null").open("wb", buffering=0) as null:
        assert null.write(b"into nothing") == 12
    # From inside: the way there leads through folders that are root's alone.
    assert run("setpriv", "--reuid", "65534", "--clear-groups", "cat", "bin/tool", cwd=root).stdout == b"#!/bin/sh\necho tool\n"


def test_mapped_and_executed(root: Path, small: SmallImage) -> None:
    """The kernel maps and runs files from the mount."""
    with (root / large_file(2)).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[100_000:] == small.files[large_file(2)][100_000:]
        assert mapped[:] == small.files[large_file(2)]
    assert run(root / "bin/symlink").stdout == b"tool\n"


@pytest.mark.images
@pytest.mark.registry
@pytest.mark.root
def test_program_in_a_chroot(lazyfs: Lazyfs, converted: Callable[[str], str]) -> None:
    """A shell of the image runs with the mount as its root, and sees the image's own files."""
    with lazyfs.mounted(converted("debian"), "--background", "off") as root:
        said = run(
            "chroot", root, "/bin/sh", "-c", "cat /etc/debian_version && test -u /usr/bin/passwd && echo suid"
        ).stdout.decode()
    assert said.startswith("12.") and said.endswith("suid\n")
