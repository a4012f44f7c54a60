"""Everything works for an ordinary user: converting, mounting through fusermount3, reading, unmounting.

Where /dev/fuse is root's alone, as in many containers, a node that everybody may open is bound over it, in a mount namespace
of the test's own. The checkout is bound to a place that the user can reach, wherever it lies.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534

# Propagation is left alone where it cannot be changed: in a chroot, / is not a mount point.
AS_NOBODY = r"""set -e
mount --make-rprivate /dev
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
mount --bind "$2" "$1/checkout"
cd "$1"
export HOME="$1/home" PYTHONPATH="$1/checkout" PYTHONDONTWRITEBYTECODE=1
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -ec "$3"
"""
SESSION = r"""
lazyfs() { "$HOME/../checkout/.venv/bin/python" -m lazyfs "$@"; }
lazyfs convert "oci:$HOME/original:v1" "oci:$HOME/lazy:v1" >&2
lazyfs mount "oci:$HOME/lazy:v1" "$HOME/root" --background wait
trap 'lazyfs umount "$HOME/root"' EXIT
lazyfs status "$HOME/root" --json
cat "$HOME/root/etc/passwd"
"$HOME/root/bin/busybox" echo hello from inside
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter, with a home of nobody's."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-nobody-", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        for part in ("checkout", "home", "home/root"):
            (path / part).mkdir()
        yield path


@pytest.mark.images
@pytest.mark.fuse
@pytest.mark.root
def test_ordinary_user_converts_and_mounts(folder: Path, images: Callable[[str], str]) -> None:
    """Without any privilege but fusermount3's, an image is converted, mounted, read, executed from and unmounted."""
    run("skopeo", "copy", "--quiet", "--insecure-policy", images("busybox"), f"oci:{folder}/home/original:v1")
    run("chown", "-R", f"{NOBODY}:{NOBODY}", folder / "home")
    checkout = Path(sys.prefix).parent if Path(sys.prefix).name == ".venv" else ROOT
    command = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", AS_NOBODY, "sh", folder, checkout, SESSION)
    environment = {"PATH": os.environ["PATH"]}
    status, passwd, hello = run(*command, env=environment).stdout.decode().splitlines()
    assert json.loads(status)["complete"]
    assert passwd == "root:x:0:0:root:/root:/bin/sh"
    assert hello == "hello from inside"
    assert not (folder / "home" / "root").is_mount()
