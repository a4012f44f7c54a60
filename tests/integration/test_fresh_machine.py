"""README's first command on a fresh machine: a chroot of a new Debian 12, with a clone of this checkout and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parent.parent.parent
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
DEMO = r"""set -e
mount --make-rprivate "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PIP_CERT=/authorities.crt sh -c 'cd /root/lazyfs && ./bench/demo'
"""


@pytest.fixture
def machine(session_folder: Path) -> Iterator[Path]:
    """The root directory of the new machine, a mount point: what is mounted in it can be kept from showing outside."""
    root = session_folder / "machine"
    root.mkdir()
    run("mount", "--bind", root, root)
    try:
        run("debootstrap", "--variant=minbase", "bookworm", root, timeout=900)
        shutil.copy(AUTHORITIES, root / "authorities.crt")
        shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
        run("git", "clone", "--quiet", ROOT, root / "root" / "lazyfs")
        yield root
    finally:
        run("umount", "--lazy", root)


@pytest.mark.slow
@pytest.mark.images
@pytest.mark.fuse
def test_demo_works_on_a_fresh_machine(machine: Path) -> None:
    """Setting up, building, converting, mounting and running a program work with that system's own Python; nothing is left behind."""
    done = run(
        "unshare",
        "--mount",
        "--propagation",
        "unchanged",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        DEMO,
        "sh",
        machine,
        timeout=1500,
    )
    output = done.stdout.decode()
    assert output.count("    hello\n") == 2
    assert "A full pull moves" in output
    assert not list((machine / "var/tmp").glob("lazyfs-demo-*"))
