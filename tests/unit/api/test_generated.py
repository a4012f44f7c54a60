"""What is generated is what .ci/generate would generate now, under the names that containerd knows."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

ROOT = Path(__file__).parents[3]
API = ROOT / "lazyfs/api"
CARRIED = ["lazyfs/api", "tests/cri"]
"""Folders that hold a folder `proto`, and what is generated from it."""
PROTOS = [(folder, path.relative_to(ROOT / folder / "proto")) for folder in CARRIED for path in (ROOT / folder).rglob("*.proto")]


def generated(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if re.search(r"_pb2(_grpc)?\.pyi?$", path.name)
    }


@pytest.mark.parametrize("folder", CARRIED)
def test_nothing_has_drifted(folder: str, tmp_path: Path) -> None:
    """Generated anew, every file has the same bytes, and there are no others."""
    subprocess.run([ROOT / ".ci/generate", tmp_path], check=True, timeout=120)
    new, old = generated(tmp_path / folder), generated(ROOT / folder)
    assert sorted(new) == sorted(old)
    assert not [str(name) for name, content in new.items() if content != old[name]], "run .ci/generate"


@pytest.mark.parametrize(("folder", "proto"), PROTOS, ids=str)
def test_names(folder: str, proto: Path) -> None:
    """A .proto has its authors' name in protobuf's pool, and its messages know the module that they lie in."""
    place = ".".join((*Path(folder).parts, *proto.parts)).removesuffix(".proto") + "_pb2"
    module = importlib.import_module(place)
    assert descriptor_pool.Default().FindFileByName(str(proto)) is module.DESCRIPTOR
    assert {getattr(module, name).__module__ for name in module.DESCRIPTOR.message_types_by_name} == {place}


def test_methods_of_the_snapshotter() -> None:
    """The paths that containerd calls, all ten."""
    module = importlib.import_module("lazyfs.api.services.snapshots.v1.snapshots_pb2_grpc")
    called = re.findall(
        r"'/containerd\.services\.snapshots\.v1\.Snapshots/(\w+)',\n\s+request_serializer", Path(module.__file__).read_text()
    )
    assert called == ["Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage", "Cleanup"]


def test_floors() -> None:
    """The extra `containerd` asks for the versions that the generated code asks for."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["containerd"]
    text = "".join(path.read_text() for path in API.rglob("*_pb2*.py"))
    (protobuf,), (grpcio,) = (
        set(re.findall(r"^# Protobuf Python Version: (\S+)$", text, re.MULTILINE)),
        set(re.findall(r"GENERATED_VERSION = '(.+)'", text)),
    )
    assert {f"protobuf>={protobuf}", f"grpcio>={grpcio}"} <= set(extra)


def test_everything_else_works_without_grpcio() -> None:
    """Where the extra `containerd` is not installed, the commands and the daemon start."""
    code = "import sys; sys.modules['grpc'] = sys.modules['google'] = None; import lazyfs.cli.main, lazyfs.daemon.__main__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
