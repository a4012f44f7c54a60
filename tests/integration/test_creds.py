"""A password given with a command: nobody reads it off the processes that stay."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import Lazyfs
from tests.lazyfsd import moments
from tests.small_image import SmallImage

SECRET = "s3cret-of-this-test"


def reporting() -> list[str]:
    """The processes whose command line or environment holds the password, ours aside."""
    return [f"{process} {what}" for process in processes() for what in ("cmdline", "environ") if SECRET in text(process / what)]


def processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())


def text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def titled(words: str) -> list[str]:
    """Titles of processes that hold `words`."""
    return [found for process in processes() if words in (found := text(process / "cmdline").replace("\0", " "))]


@pytest.mark.fuse
@pytest.mark.parametrize("mode", ["portable", pytest.param("native", marks=pytest.mark.root)])
def test_what_stays_of_a_mount_does_not_leak_the_password(mode: str, lazyfs: Lazyfs, small: SmallImage) -> None:
    """Neither a mount's own process nor lazyfsd and its keeper; the option is still there to be seen, and so is the rest."""
    with lazyfs.mounted(small.converted, "--background", "off", "--creds", f"me:{SECRET}", mode=mode) as root:
        assert (root / "bin/tool").read_bytes() == small.files["bin/tool"]
        assert reporting() == []
        stays = [title for title in titled(str(lazyfs.store)) if "lazyfs" in title]
        assert stays and (mode == "native" or any("--creds USER:***" in title for title in stays))


@pytest.mark.fuse
def test_a_mount_in_the_foreground_does_not_leak_the_password(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """From when it answers; it was given the password in another form."""
    root = tmp_path / "root"
    root.mkdir()
    command = [sys.executable, "-m", "lazyfs", "mount", "--foreground", "--store", str(lazyfs.store)]
    with subprocess.Popen([*command, f"--creds=me:{SECRET}", small.converted, str(root)], env=lazyfs.environment) as process:
        for _ in moments():
            if root.is_mount():
                break
        reports = reporting()
        lazyfs.run("umount", root)
    assert (reports, process.returncode) == ([], 0)


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.images
@pytest.mark.containerd
def test_a_container_that_runs_does_not_leak_the_password(lazyfs: Lazyfs, images: Callable[[str], str]) -> None:
    """`lazyfs run` stays as long as its program, which sees nothing of the password either; its input begins behind the line."""
    command = [sys.executable, "-m", "lazyfs", "run", "--store", str(lazyfs.store)]
    script = ("sh", "-c", "echo ready; cat; cat /proc/1/environ")
    for options, said in ((["--creds", f"me:{SECRET}"], b""), (["--creds-stdin"], f"me:{SECRET}\n".encode())):
        with subprocess.Popen(
            [*command, *options, images("busybox"), *script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=lazyfs.environment,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(said + b"for the program\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n"
            reports = reporting()
            process.stdin.close()
            rest = process.stdout.read()
        assert reports == [] and process.returncode == 0
        assert rest.startswith(b"for the program\n") and not re.search(SECRET.encode(), rest)
