"""README's quick start, line by line, as it stands there."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Lazyfs, run
from tests.containerd import Containerd
from tests.docker_registry import Registry
from tests.plugin import NAME, Plugin

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd, pytest.mark.images]

README = Path(__file__).parents[2] / "README.md"
IMAGE, LAZY = "registry.example.org/app:1", "registry.example.org/app:1-lazy"


def quick_start() -> list[list[str]]:
    """The commands of the section "Use it"."""
    section = README.read_text().partition("\n## Use it\n")[2].partition("\n## ")[0]
    lines = [shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("    ")]
    return [line for line in lines if line]


def test_quick_start(
    containerd: Containerd,
    plugin: Plugin,
    lazyfs: Lazyfs,
    originals: Callable[[str], str],
    shared_registry: Registry,
    tmp_path: Path,
) -> None:
    """Each command ends with 0. What is added names this test's registry, directory, store and containerd."""
    directory = tmp_path / "app"
    directory.mkdir()
    original = originals("debian").removeprefix("docker://")
    names = {IMAGE: original, LAZY: f"{shared_registry.address}/readme/app:1-lazy", "/mnt/app": str(directory)}
    store = ["--store", str(lazyfs.store)]
    added = {
        "mount": store,
        "status": store,
        "run": store,
        "pull": ["--store", str(plugin.store), "--address", str(containerd.folder / "socket")],
    }
    seen = []
    for program, command, *arguments in quick_start():
        replaced = [names.get(argument, argument) for argument in arguments]
        seen.append(command)
        if program == "ctr":
            assert NAME in replaced
            containerd.ctr(command, *replaced)
        else:
            assert program == "lazyfs"
            run(sys.executable, "-m", "lazyfs", command, *added.get(command, []), *replaced, env=lazyfs.environment, timeout=300)
            assert directory.is_mount() == (command in {"mount", "status"})
    assert seen == ["convert", "verify", "inspect", "mount", "status", "umount", "run", "pull", "run"]
