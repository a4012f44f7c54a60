"""The folders of containers: locked while they are in use, swept afterwards, removed whatever a container left in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.daemon.containers import container_folder, remove_tree, sweep
from lazyfs.errors import LocalError
from tests.commands import run
from tests.lazyfsd import await_end


def names(store: Path) -> list[str]:
    return sorted(os.listdir(store / "containers"))


def unmounts_nothing(_: Path) -> None:
    """There is no mount."""


def test_a_folder_lasts_as_long_as_its_context(tmp_path: Path) -> None:
    """Private, under a name fit for a container, two at once; gone with what is in it."""
    with container_folder(tmp_path / "store") as one, container_folder(tmp_path / "store") as other:
        assert one.path != other.path
        assert one.path.is_dir() and one.path.stat().st_mode & 0o777 == 0o700
        assert one.path.name.replace("-", "").isalnum() and len(one.path.name) < 64  # a host name too
        (one.path / "upper/var").mkdir(parents=True)
        (one.path / "upper/var/file").write_text("x")
    assert names(tmp_path / "store") == []


def test_its_path_is_the_kernels(tmp_path: Path) -> None:
    """Under a store that is reached through a symbolic link, a mount in the folder is found by the folder's path."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with container_folder(tmp_path / "link") as folder:
        assert folder.path.parent == tmp_path.resolve() / "real/containers"


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    """A store that is a file gives a clear error."""
    (tmp_path / "store").write_text("")
    with pytest.raises(LocalError, match="cannot make"), container_folder(tmp_path / "store"):
        pass


def test_sweep_leaves_what_is_held(tmp_path: Path) -> None:
    """Of two owners one is dead: his folder goes, unmounted first; a second sweep has nothing to do."""
    script = "from lazyfs.daemon.containers import *; from pathlib import Path; import os, sys\n"
    script += "with container_folder(Path(sys.argv[1])) as it: (it.path / 'rootfs').mkdir(); print(it.path.name); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    dead = run(sys.executable, "-c", script, tmp_path, code=-9).stdout.decode().strip()
    asked: list[Path] = []
    with container_folder(tmp_path) as living:
        assert sweep(tmp_path, asked.append) == [dead]
        assert asked == [tmp_path / "containers" / dead / "rootfs"]
        assert living.path.is_dir()
        assert sweep(tmp_path, asked.append) == []
    assert names(tmp_path) == []


def test_a_child_holds_it_too(tmp_path: Path) -> None:
    """A folder whose maker was killed stays while a process lives that inherited the hold."""
    script = (
        "from lazyfs.daemon.containers import *; from pathlib import Path; import os, sys\n"
        "with container_folder(Path(sys.argv[1])) as it:\n"
        "    os.set_inheritable(it.hold, True)\n"
        "    print(os.posix_spawnp('sleep', ['sleep', '1000'], os.environ)); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.wait()
    assert sweep(tmp_path, unmounts_nothing) == []
    os.kill(child, 9)
    await_end(child)
    assert len(sweep(tmp_path, unmounts_nothing)) == 1


def test_sweep_passes_over_what_cannot_be_unmounted(tmp_path: Path) -> None:
    """It is left as it is, and the next one swept all the same."""
    for number in range(2):
        (tmp_path / f"containers/lazyfs-{number:012x}").mkdir(parents=True)

    def refuse_first(root: Path) -> None:
        if root.parent.name.endswith("0"):
            raise OSError(16, "busy")

    assert sweep(tmp_path, refuse_first) == ["lazyfs-000000000001"]
    assert "lazyfs-000000000000" in names(tmp_path)
    assert sweep(tmp_path, unmounts_nothing) == ["lazyfs-000000000000"]
    assert names(tmp_path) == []


def test_sweep_touches_only_what_is_a_containers(tmp_path: Path) -> None:
    """No folder, a file in its place, names of others: nothing happens to them."""
    assert sweep(tmp_path, unmounts_nothing) == []
    (tmp_path / "containers/notes").mkdir(parents=True)
    assert sweep(tmp_path, unmounts_nothing) == []
    assert names(tmp_path) == ["notes"]


def test_removal_of_what_a_container_left(tmp_path: Path) -> None:
    """Directories deeper than a path or a stack reaches, names that are no text, links to what is outside, FIFOs, empty modes."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(outside)
    (top / "upper").mkdir()
    (top / "upper/link").symlink_to(outside / "kept")
    os.mkfifo(top / "upper/fifo")
    for number in range(300):
        (top / "upper" / f"wide-{number}").mkdir(mode=0)
    here = os.open(top / "upper", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir(b"deep\xff", dir_fd=here)
        deeper = os.open(b"deep\xff", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0, dir_fd=here))
    os.close(here)
    remove_tree(top)
    assert not top.exists() and (outside / "kept").read_text() == "x"
    remove_tree(top)


@pytest.mark.root
def test_removal_stops_at_a_mount(tmp_path: Path) -> None:
    """What is still mounted is neither emptied nor removed, at any depth; unmounted it goes."""
    for place in ("rootfs", "upper/deep"):
        mounted = tmp_path / "top" / place
        mounted.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "tmpfs", mounted)
        (mounted / "file").write_text("kept")
        with pytest.raises(OSError):
            remove_tree(tmp_path / "top")
        assert (mounted / "file").read_text() == "kept"
        run("umount", mounted)
    remove_tree(tmp_path / "top")
    assert not (tmp_path / "top").exists()
