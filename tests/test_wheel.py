"""The wheel works by itself: built, installed in an empty environment outside the checkout, it converts, mounts and unmounts."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(session_folder: Path) -> Path:
    """The wheel of this checkout. Its build requirements are the environment's: nothing is downloaded."""
    target = session_folder / "wheel"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, session_folder: Path) -> Path:
    """The `lazyfs` of a new environment that holds the wheel, and of our own environment the requirements as they are locked."""
    home = session_folder / "wheel-environment"
    run("/usr/bin/python3", "-m", "venv", home)
    lock = ROOT / ".ci" / "requirements.lock"
    pip = (home / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location")
    run(*pip, f"{wheel}[mount]", env=os.environ | {"PIP_CONSTRAINT": str(lock)}, cwd=home, timeout=600)
    return home / "bin" / "lazyfs"


def test_wheel_holds_what_is_shipped(wheel: Path) -> None:
    """Both packages with their type markers and the licence; neither tests nor bench."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"lazyfs/py.typed", "converter/py.typed", "lazyfs/errors.py", "converter/__init__.py"} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"lazyfs", "converter"}


@pytest.mark.images
@pytest.mark.fuse
def test_wheel_converts_and_mounts(installed: Path, images: Callable[[str], str], tmp_path: Path) -> None:
    """From outside the checkout: convert to a layout, mount it, read a file through the mount, unmount."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    lazy, root, store = f"oci:{tmp_path}/layout:v1", tmp_path / "root", tmp_path / "store"
    root.mkdir()
    run(installed, "convert", images("busybox"), lazy, cwd=tmp_path, env=environment)
    run(installed, "mount", lazy, root, "--store", store, cwd=tmp_path, env=environment)
    try:
        assert (root / "etc/passwd").read_text() == "root:x:0:0:root:/root:/bin/sh\n"
        assert json.loads(run(installed, "status", root, "--json", env=environment).stdout)["directory"] == str(root)
    finally:
        run(installed, "umount", root, cwd=tmp_path, env=environment)
    assert not root.is_mount()
