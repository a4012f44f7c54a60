"""Native mounts as a user meets them: the kernel serves what is here, one lazyfsd brings what is not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.daemon.holding import SOCKET_NAME
from tests.commands import Lazyfs, run
from tests.docker_registry import Registry
from tests.lazyfsd import moments, remains, traces
from tests.small_image import SmallImage, build, build_of, large_file, small_file

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def counts(lazyfs: Lazyfs, root: Path) -> dict[str, int]:
    """What passed the gate of the lazyfsd that made the mount at `root`, and what it kept."""
    status = lazyfs.json("status", root)
    return {name: status[name] for name in ("published", "entries", "reads", "kept")}


@contextmanager
def holding(directory: Path) -> Iterator[None]:
    """A process whose working directory is in a mount."""
    with subprocess.Popen(["sleep", "1000"], cwd=directory) as process:  # returns when that is what it is
        try:
            yield
        finally:
            process.kill()


def test_all_files_read_back(lazyfs: Lazyfs, small: SmallImage) -> None:
    """Every byte of every file, cold, again, and in a second mount with the registry away; afterwards nothing is left."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        assert not small.wrong_files(root)
        assert not small.wrong_files(root)
        assert run(root / "bin/tool").stdout == b"tool\n"
        assert not (root / "gone").exists()
        assert (root / "bin/tool").stat().st_nlink == 2
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()
    assert traces(lazyfs.store) == []
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        assert not small.wrong_files(root)
        assert lazyfs.json("status", root)["requests"] == 0
    assert remains(lazyfs.store) == []


def test_a_walk_asks_nobody(lazyfs: Lazyfs, small: SmallImage) -> None:
    """stat, find, du and ls over an image that has no data here pass neither the gate nor the network."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        before = counts(lazyfs, root)
        for command in (
            ["find", root, "-printf", "%p %s %l\\n"],
            ["du", "-s", root],
            ["ls", "-lR", root],
            ["stat", root / "first"],
        ):
            run(*command)
        after = counts(lazyfs, root)
        assert after == before
        assert lazyfs.json("status", root)["requests"] == 0


def test_each_small_file_passes_the_gate_once(lazyfs: Lazyfs, small: SmallImage) -> None:
    """A miss is one lookup and no read; what has arrived never asks again."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        names = [small_file(number) for number in range(100)]
        for _ in range(2):
            for name in names:
                assert (root / name).read_bytes() == small.files[name]
        after = counts(lazyfs, root)
        assert 0 < after["published"] <= len(names), "neighbours that came along are not even asked for"
        assert (after["entries"], after["reads"]) == (0, 0)


def test_large_files_become_local(lazyfs: Lazyfs, small: SmallImage) -> None:
    """A file of several chunks goes through the gate until it is whole; then it is opened where it lies."""
    name = large_file(6)
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        assert (root / name).read_bytes() == small.files[name]
        assert counts(lazyfs, root)["entries"] == 1
        wait_until_local(lazyfs, root, [name])


def wait_until_local(lazyfs: Lazyfs, root: Path, names: list[str]) -> None:
    """Read `names`, whole and uncached, until that passes the gate no more. AssertionError if it always does."""
    for _ in moments():
        before = counts(lazyfs, root)
        for name in names:
            descriptor = os.open(root / name, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while os.read(descriptor, 1 << 20):
                pass
            os.close(descriptor)
        after = counts(lazyfs, root)
        if after == before:
            return
    raise AssertionError("they are still read through the gate")


def test_chown_fetches_nothing(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """chown -R over a writable mount brings no byte of a file; what is read afterwards is right, and becomes local."""
    with lazyfs.mounted(small.converted, "--background", "off", "--rw", tmp_path / "upper", mode="native") as root:
        run("chown", "-R", "1234:1234", root)
        status = lazyfs.json("status", root)
        assert (status["requests"], status["received_bytes"]) == (0, 0)
        assert not small.wrong_files(root)
        assert (root / small_file(3)).stat().st_uid == 1234
        wait_until_local(lazyfs, root, [small_file(3), small_file(4), large_file(1)])


def test_a_writable_mount_keeps_its_changes(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """What is written goes to the upper directory, and is there at the next mount; overlayfs's own folder is gone."""
    upper = tmp_path / "upper, with: odd\\characters"
    with lazyfs.mounted(small.converted, "--rw", upper, mode="native") as root:
        (root / "new").write_bytes(b"new")
        (root / small_file(5)).write_bytes(b"changed")
        with (root / large_file(3)).open("r+b") as file:
            file.write(b"begin")
        (root / small_file(6)).unlink()
        (root / "etc/conf.d").rename(root / "etc/renamed")
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(upper.name)} == {upper.name}
    with lazyfs.mounted(small.converted, "--rw", upper, mode="native") as root:
        assert (root / "new").read_bytes() == b"new"
        assert (root / small_file(5).replace("conf.d", "renamed")).read_bytes() == b"changed"
        assert (root / large_file(3)).read_bytes() == b"begin" + small.files[large_file(3)][5:]
        assert not (root / small_file(6).replace("conf.d", "renamed")).exists()
        assert (root / small_file(8).replace("conf.d", "renamed")).read_bytes() == small.files[small_file(8)]


def test_images_share_what_they_have_in_common(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path, registry: Registry) -> None:
    """A file of a second image that the first one has brought is neither fetched nor stored again; one lazyfsd serves both."""
    other = build(tmp_path / "other", small_files=20, seed=1)
    one, two = registry.push(small.converted, "one:v1"), registry.push(other.converted, "two:v1")
    with (
        lazyfs.mounted(one, "--background", "off", mode="native") as first,
        lazyfs.mounted(two, "--background", "off", mode="native") as second,
    ):
        assert not small.wrong_files(first)
        kept = counts(lazyfs, first)["kept"]
        assert not other.wrong_files(second)
        assert counts(lazyfs, first)["kept"] == kept
        assert lazyfs.json("status", second)["chunks"] == 0
        assert len({lazyfs.json("status", root)["pid"] for root in (first, second)}) == 1


def test_busy_mounts_are_left(lazyfs: Lazyfs, small: SmallImage) -> None:
    """Who holds a mount is named; detached, it serves its last user, misses included, and ends with him."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        with holding(root):
            assert b"sleep" in lazyfs.run("umount", root, "--store", lazyfs.store, code=5).stderr
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            lazyfs.run("umount", "--lazy", root, "--store", lazyfs.store)
            assert not root.is_mount()
            with open(os.open(small_file(9), os.O_RDONLY, dir_fd=descriptor), "rb") as file:
                assert file.read() == small.files[small_file(9)]
            os.close(descriptor)
    assert remains(lazyfs.store) == []


def test_umount_of_others_is_noticed(lazyfs: Lazyfs, small: SmallImage) -> None:
    """umount(8) behind lazyfsd's back ends the mount as well, and with the last one lazyfsd."""
    with lazyfs.mounted(small.converted, mode="native") as root:
        run("umount", root)
    assert remains(lazyfs.store) == []


def test_private_to_root(lazyfs: Lazyfs, small: SmallImage) -> None:
    """The state directory and the socket in it are nobody else's."""
    with lazyfs.mounted(small.converted, mode="native"):
        assert lazyfs.store.stat().st_mode & 0o777 == 0o700
        assert (lazyfs.store / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


def test_mode_is_reported(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """auto says what it chose; status knows both kinds, and umount takes both away."""
    for number, (mode, expected) in enumerate((("auto", "native"), ("native", "native"), ("portable", "portable"))):
        directory = tmp_path / str(number)
        directory.mkdir()
        done = lazyfs.run("mount", small.converted, directory, "--store", lazyfs.store, "--mode", mode)
        assert (f"mounting {expected}ly" in done.stderr.decode()) == (mode == "auto")
    modes = [lazyfs.json("status", tmp_path / str(number))["mode"] for number in range(3)]
    assert modes == ["native", "native", "portable"]
    for number in range(3):
        lazyfs.run("umount", tmp_path / str(number))
    assert remains(lazyfs.store) == []


def test_paths_that_are_not_utf8_are_mounted_portably(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """auto chooses what can; native says what it cannot."""
    directory = tmp_path / "caf\udce9"
    directory.mkdir()
    output = lazyfs.run("mount", small.converted, directory, "--store", lazyfs.store, "--mode", "native", code=5).stderr
    assert b"not UTF-8" in output
    output = lazyfs.run("mount", small.converted, directory, "--store", lazyfs.store).stderr
    assert b"mounting portably" in output
    assert not small.wrong_files(directory)
    lazyfs.run("umount", directory)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--mode", "portable", "--rw", "UPPER"), 2, "--rw needs a native mount"),
        (("--mode", "native", "--foreground"), 2, "--foreground"),
        (("--foreground", "--record", "FILE"), 2, "--record"),
        (("--rw", "DIR/upper"), 5, "lie within each other"),
    ],
)
def test_options_that_exclude_each_other(
    options: tuple[str, ...], code: int, text: str, lazyfs: Lazyfs, small: SmallImage, tmp_path: Path
) -> None:
    """What cannot be is said before anything is mounted."""
    (tmp_path / "DIR").mkdir()
    done = lazyfs.run("mount", small.converted, "DIR", "--store", lazyfs.store, *options, code=code, cwd=tmp_path)
    assert text in done.stderr.decode()
    assert not (tmp_path / "DIR").is_mount()


def test_names_are_looked_at_before_anybody_asks(lazyfs: Lazyfs, tmp_path: Path) -> None:
    """lazyfsd has the kernel read all metadata of what it mounts, and no file's data."""

    def cached(path: Path) -> int:
        """Bytes of a file that are in the page cache."""
        return int(run("fincore", "--noheadings", "--bytes", "--output", "RES", path).stdout)

    image = build_of(tmp_path / "image", {f"{number % 50}/{number}": b"%d" % number for number in range(3000)}).converted
    with lazyfs.mounted(image, "--background", "off", mode="native"):
        pass
    metadata = max((lazyfs.store / "erofs").iterdir(), key=lambda path: path.stat().st_size)
    with metadata.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(metadata) < metadata.stat().st_size
    with lazyfs.mounted(image, "--background", "off", mode="native") as root:
        for _ in moments():
            if cached(metadata) >= metadata.stat().st_size:
                break
        assert cached(metadata) >= metadata.stat().st_size
        assert counts(lazyfs, root)["published"] == 0
