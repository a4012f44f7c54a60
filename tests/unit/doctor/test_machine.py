"""What is said of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lazyfs.doctor import machine
from lazyfs.doctor.finding import Finding
from lazyfs.doctor.machine import examine_files, examine_machine
from lazyfs.native.probe import ProbeResult


def found(store: Path, proc: Path = Path("/proc")) -> dict[str, Finding]:
    return {each.about: each for each in examine_machine(store, proc)}


@pytest.mark.root
@pytest.mark.fuse
def test_this_machine(tmp_path: Path) -> None:
    """It is one where these tests run: nothing is missing, and nothing of the trial is left."""
    findings = found(tmp_path / "store" / "deep")
    assert not [each for each in findings.values() if each.verdict == "missing"]
    assert set(findings) >= {"root", "fuse", "native", "resend", "timeouts", "pyfuse3", "grpcio"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("verdict", "about", "expected"),
    [
        (ProbeResult(native=False, file_backed=False, reason="this kernel has no EROFS"), "native", "missing"),
        (ProbeResult(native=True, file_backed=False, reason=""), "erofs", "loss"),
    ],
)
def test_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: ProbeResult, about: str, expected: str) -> None:
    """What the trial has shown, in words."""
    monkeypatch.setattr(machine, "probe", lambda _: verdict)
    finding = found(tmp_path)[about]
    assert finding.verdict == expected
    assert verdict.reason in finding.text


def test_nobody_in_particular(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root that is reported, and no trial is made."""
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    findings = found(tmp_path)
    assert findings["root"].verdict == "missing"
    assert "native" not in findings


@pytest.mark.parametrize(
    ("release", "verdict"), [("6.8.12", "loss"), ("6.9.0-1-amd64", "ok"), ("6.12.48+deb13", "ok"), ("7.0", "ok")]
)
def test_resend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, verdict: str) -> None:
    """Linux before 6.9 loses what a dead process has read and not answered."""
    real = machine.os.uname()
    monkeypatch.setattr(machine.os, "uname", lambda: type(real)((*real[:2], release, *real[3:])))
    assert found(tmp_path)["resend"].verdict == verdict


@pytest.mark.parametrize(
    ("name", "value", "verdict"), [("default", 0, "ok"), ("default", 60, "missing"), ("max", 30, "missing"), ("max", 600, "ok")]
)
def test_request_timeouts(tmp_path: Path, name: str, value: int, verdict: str) -> None:
    """Shorter than a slow read, they end every mount."""
    folder = tmp_path / "sys" / "fs" / "fuse"
    folder.mkdir(parents=True)
    (folder / f"{name}_request_timeout").write_text(f"{value}\n")
    finding = found(tmp_path, tmp_path)["timeouts"]
    assert finding.verdict == verdict
    assert verdict == "ok" or f"sysctl -w fs.fuse.{name}_request_timeout=0" in finding.hint


@pytest.mark.parametrize(("missing", "about"), [("pyfuse3", "pyfuse3"), ("grpc", "grpcio")])
def test_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, about: str) -> None:
    """What does not work without it, and how to get it."""
    for name in [name for name in sys.modules if name.split(".")[0] == missing or name.endswith("snapshots_pb2_grpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # what Python takes for "cannot be imported"
    finding = found(tmp_path)[about]
    assert finding.verdict == "missing"
    assert "pip install 'lazyfs[" in finding.hint


@pytest.mark.parametrize(("limit", "verdict"), [(-1, "ok"), (1024, "loss"), (65_536, "ok")])
def test_open_files(limit: int, verdict: str) -> None:
    """A limit that is too low for containers is reported."""
    assert examine_files(limit, "somebody").verdict == verdict
