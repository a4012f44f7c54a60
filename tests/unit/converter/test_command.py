"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from converter.command import main
from lazyfs.errors import InvalidTar, LazyfsError, NotFound, UsageError
from tests.unit.converter.making import tar_of
from tests.unit.converter.places import MemoryRepository


def layout_of(place: MemoryRepository, path: Path) -> str:
    """Write what a Place has as an OCI layout."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, data in place.blobs.items():
        (blobs / digest[7:]).write_bytes(data)
    for document in place.documents.values():
        (blobs / document.digest[7:]).write_bytes(document.data)
    document = place.documents["v1"]
    entry = {
        "mediaType": document.media_type,
        "digest": document.digest,
        "size": len(document.data),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci:{path}:v1"


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A small image in a layout."""
    place = MemoryRepository()
    place.add_image(tar_of([]))
    return layout_of(place, tmp_path / "source")


def test_an_image_is_converted_and_reported(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people."""
    assert main([source, f"oci:{tmp_path}/out:v1"]) == 0
    said = capsys.readouterr()
    assert f"oci:{tmp_path}/out:v1  sha256:" in said.out
    assert said.err == ""


def test_json_for_programs(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object, and nothing else."""
    main([source, f"oci:{tmp_path}/out", "--json"])
    report = json.loads(capsys.readouterr().out)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert report["digest"] == index["manifests"][0]["digest"]
    assert set(report["images"][0]["layers"][0]) == {
        "source_digest",
        "source_size",
        "digest",
        "size",
        "diff_id",
        "toc_digest",
        "uncompressed_size",
        "entries",
        "chunks",
        "kept",
        "seconds",
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--chunk-size", "4095"],
        ["--chunk-size", "65M"],
        ["--level", "0"],
        ["--level", "13"],
        ["--workers", "0"],
        ["--workers", "65"],
        ["--prioritize", "/nowhere"],
        ["--platform", "nonsense"],
        ["--creds", "nonsense"],
        ["--src-creds", "nonsense"],
    ],
)
def test_wrong_options_are_reported(source: str, tmp_path: Path, options: list[str]) -> None:
    """As UsageError, before anything is done."""
    with pytest.raises(UsageError):
        main([source, f"oci:{tmp_path}/out", *options])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [["--chunk-size", "4X"], ["--platform", "linux/amd64", "--all-platforms"], ["--lev", "5"], []]
)
def test_argparse_reports_the_rest(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        main(["oci:x", *([f"oci:{options[0]}"] if options else []), *options])
    assert caught.value.code == 2
    assert "usage: lazyfs convert" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--chunk-size", "4K"], ["--chunk-size", "65536"], ["--chunk-size", "64m"], ["--level", "12"]]
)
def test_right_options_are_taken(source: str, tmp_path: Path, options: list[str]) -> None:
    """Sizes in several spellings, the bounds themselves."""
    assert main([source, f"oci:{tmp_path}/out", *options]) == 0


def test_creds_for_two_registries_must_say_for_which() -> None:
    """What is for one of them never goes to the other."""
    with pytest.raises(UsageError, match="--src-creds and --dst-creds"):
        main(["docker://one.example/a", "docker://two.example/a", "--creds", "u:p"])


def test_a_destination_has_no_digest(source: str) -> None:
    """It follows from the content."""
    with pytest.raises(UsageError, match="names a digest"):
        main([source, "oci:out@sha256:" + "0" * 64])


def test_errors_come_out_alone(tmp_path: Path) -> None:
    """Not in a group, whatever the tasks: the caller shows the message."""
    with pytest.raises(NotFound, match="not an OCI layout"):
        main([f"oci:{tmp_path}/missing", f"oci:{tmp_path}/out"])
    place = MemoryRepository()
    place.add_image(b"not a tar at all")
    with pytest.raises(InvalidTar, match="ends inside a block") as caught:
        main([layout_of(place, tmp_path / "bad"), f"oci:{tmp_path}/out"])
    assert isinstance(caught.value, LazyfsError)
    assert not (tmp_path / "out").exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """What it is for, how images are written, examples."""
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for word in ("eStargz", "oci:DIR", "--prioritize", "TMPDIR", "lazyfs convert python:3.12"):
        assert word in said


def test_converting_needs_no_fuse() -> None:
    """A build machine has neither libfuse nor a compiler."""
    program = "import sys; sys.modules['pyfuse3'] = None; import converter.command; assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
