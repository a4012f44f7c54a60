"""The way out of a lazyfsd that cannot come up."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.commands import Lazyfs
from tests.lazyfsd import PATIENCE_S, Lazyfsd, moments, remains
from tests.small_image import SmallImage, small_file

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def test_what_nobody_serves_is_given_up(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """A reader that waits for a daemon which does not come gets an error; nothing stays mounted, and the next mount works."""
    at = tmp_path / "at"
    at.mkdir()
    lazyfs.run("mount", small.converted, at, "--store", lazyfs.store, "--mode", "native", "--background", "off")
    lazyfsd = Lazyfsd(lazyfs.store)
    process, keeper = lazyfsd.process, lazyfsd.keeper
    os.kill(keeper, signal.SIGSTOP)
    os.kill(process, signal.SIGKILL)
    try:
        with subprocess.Popen(["cat", at / small_file(1)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as reader:
            for _ in moments():
                if lazyfsd.waiting():
                    break
            output = lazyfs.run("umount", "--abort", "--store", lazyfs.store).stdout.decode().splitlines()
            assert f"detached {at}" in output and f"detached {lazyfs.store / 'gate'}" in output
            _, said = reader.communicate(timeout=PATIENCE_S)
            assert os.strerror(errno.ENOTCONN) in said.decode()
    finally:
        os.kill(keeper, signal.SIGKILL)
    assert not at.is_mount()
    assert remains(lazyfs.store) == []
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        assert (root / small_file(1)).read_bytes() == small.files[small_file(1)]


def test_nothing_to_give_up_is_no_error(lazyfs: Lazyfs, tmp_path: Path) -> None:
    """It is said; and a DIR beside it is a mistake."""
    assert b"nothing mounted" in lazyfs.run("umount", "--abort", "--store", lazyfs.store).stdout
    assert b"takes no DIR" in lazyfs.run("umount", "--abort", "--store", lazyfs.store, tmp_path, code=2).stderr
    assert b"needs the DIR" in lazyfs.run("umount", code=2).stderr
