"""The kernel's table of mounts, as we read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.kernel import mountinfo
from lazyfs.kernel.mountinfo import MountInfo, mounted_at, mounts

TABLE = rb"""27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
45 27 0:39 / /mnt/with\040blank\012line rw,relatime - overlay lazyfs:an\040image ro,lowerdir+=/a\054b\134,lowerdir+=/c,datadir+=/d\075,metacopy=on
46 27 0:40 /below /caf%c master:2 propagate_from:1 - fuse.lazyfs docker://h/i:t@sha256:0 ro,user_id=1000,allow_other
47 27 0:41 / /mnt/with\040blank\012line rw,relatime - tmpfs none rw
48 27 0:42 / /mnt/odd rw,relatime - tmpfs %o rw
49 27 0:43 / /mnt/none rw,relatime - tmpfs  rw
"""
ODD = "a\rb\vc\x1cd\x85e\u2028f"
TABLE = TABLE.replace(b"%c", b"\xe9").replace(b"%o", ODD.encode())


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of TABLE."""
    (tmp_path / "mountinfo").write_bytes(TABLE)
    monkeypatch.setattr(mountinfo, "Path", lambda path: tmp_path / "mountinfo" if path == "/proc/self/mountinfo" else Path(path))


def test_fields(table: None) -> None:
    """Optional fields are passed over, octal numbers are bytes, and commas separate options only where the kernel wrote them."""
    root, overlay, fuse, *_ = mounts()
    assert root == MountInfo(Path("/"), "254:0", "ext4", "/dev/root", ("rw", "discard"))
    assert (overlay.path, overlay.source) == (Path("/mnt/with blank\nline"), "lazyfs:an image")
    assert overlay.values("lowerdir+") == ["/a,b\\", "/c"]
    assert overlay.values("datadir+") == ["/d="]
    assert overlay.values("nothing") == overlay.values("ro") == []
    assert os.fsencode(fuse.path) == b"/caf\xe9"
    assert fuse.values("user_id") == ["1000"]
    assert fuse.number == os.makedev(0, 40)


def test_odd_sources(table: None) -> None:
    """What the kernel writes as it is does not end a line, whatever it is; and a source may be nothing."""
    *_, odd, none = mounts()
    assert (odd.path, odd.source, odd.options) == (Path("/mnt/odd"), ODD, ("rw",))
    assert (none.path, none.source, none.options) == (Path("/mnt/none"), "", ("rw",))


def test_the_uppermost_is_meant(table: None) -> None:
    """Of two mounts at one place the later one is seen; where nothing is mounted, there is none."""
    above = mounted_at(Path("/mnt/with blank\nline"))
    assert above is not None
    assert above.kind == "tmpfs"
    assert mounted_at(Path("/mnt")) is None


def test_what_the_kernel_says() -> None:
    """The table of this very process has its root, and each device is the one in stat."""
    there = {mount.path: mount for mount in mounts()}
    assert there[Path("/proc")].kind == "proc"
    assert there[Path("/proc")].number == Path("/proc").stat().st_dev
