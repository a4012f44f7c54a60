"""Orders to lazyfsd that cross each other, or are given up half-way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.daemon.client import Client
from lazyfs.format.platform import this_platform
from lazyfs.kernel.mountinfo import mounted_at
from lazyfs.reports.orders import MountOrder
from lazyfs.reports.results import MountResult
from tests.commands import Lazyfs
from tests.lazyfsd import Lazyfsd, moments, remains
from tests.lying_registry import LyingRegistry
from tests.small_image import SmallImage
from tests.unit.registry.scripted import Answer, Reply, Request

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def silent_about_files(_request: Request, right: bytes) -> Answer:
    """A registry that never answers a range at the beginning of a large blob: where the TOC is at its end, that is of files."""
    return (
        Reply(b"", "silence") if re.search(rb"content-range: bytes \d{1,5}-\d+/\d{7,}\r", right[:1000], re.IGNORECASE) else right
    )


def test_an_upper_directory_has_one_mount(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """Two overlays would spoil each other's changes, and the end of one took the other's work folder away: refused, also while the
    first one lives on detached."""
    upper, other = tmp_path / "upper", tmp_path / "other"
    other.mkdir()
    again = ("mount", small.converted, other, "--store", lazyfs.store, "--mode", "native", "--rw", upper)
    with lazyfs.mounted(small.converted, "--rw", upper, "--background", "off", mode="native") as root:
        refused = lazyfs.run(*again, code=5)
        assert str(root).encode() in refused.stderr
        with (root / "held").open("w"):
            lazyfs.run("umount", "--lazy", root)
            assert b"detached" in lazyfs.run(*again, code=5).stderr
        for _ in moments():
            if lazyfs.run(*again, code=None).returncode == 0:
                break
    (other / "new").write_text("of the second mount")
    lazyfs.run("umount", other)
    assert sorted(os.listdir(upper)) == ["held", "new"]
    assert remains(lazyfs.store) == []


def test_a_client_that_gives_up_waiting_leaves_no_mount(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """Ctrl-C while the rest of an image arrives: the mount, of which nobody was told, is taken away again."""
    root = tmp_path / "root"
    root.mkdir()
    with LyingRegistry(small.layout) as registry:
        command = [sys.executable, "-m", "lazyfs", "mount", f"{registry.image}:v1", root, "--store", lazyfs.store]
        registry.lie = silent_about_files
        options = ["--mode", "native", "--background", "wait", "--plain-http"]
        with subprocess.Popen([*map(str, command), *options], env=lazyfs.environment) as process:
            for _ in moments():
                if mounted_at(root) is not None:
                    break
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        assert mounted_at(root) is None
        registry.recover()


def test_an_order_that_is_sent_again_is_answered_as_it_was(lazyfs: Lazyfs, small: SmallImage) -> None:
    """The daemon died after it had mounted and before it said so: the next one tells all that the first would have."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        directory = root.with_name("ordered")
        directory.mkdir()
        order = MountOrder("ticket", small.converted, str(directory), str(this_platform()), background="off")
        *_, first = Client(lazyfs.store).call(order, start=False)
        Lazyfsd(lazyfs.store).kill()
        *_, second = Client(lazyfs.store).call(order, start=False)
        assert isinstance(first, MountResult) and isinstance(second, MountResult)
        assert second.config == first.config != ""
        lazyfs.run("umount", directory)
