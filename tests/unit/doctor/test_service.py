"""What is said of lazyfsd."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.daemon.config import Config
from lazyfs.daemon.holding import SOCKET_NAME
from lazyfs.doctor import service
from lazyfs.doctor.finding import Finding
from lazyfs.doctor.service import examine_service, read_config
from lazyfs.reports.status import GateStatus, LatencyStatus, ServiceStatus, StoreStatus
from lazyfs.reports.wire import encode_result


def found(store: Path, config: Config) -> dict[str, Finding]:
    return {each.about: each for each in examine_service(store, config)}


@contextmanager
def answering(store: Path, answer: bytes) -> Iterator[None]:
    """Somebody who says this at the control socket, once."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(store / SOCKET_NAME))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)
                connection.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def serving(process: int) -> bytes:
    """What a lazyfsd that serves nothing yet answers."""
    gate = GateStatus(0, 0, 0, 0, 0, LatencyStatus((), 0.0))
    return encode_result(ServiceStatus(process, (), StoreStatus(0, 0, 0, True, 0, 0, 0, 0), gate, (), ()))


def test_nobody_serves(tmp_path: Path) -> None:
    """Without a daemon: how to start one, and the limit of open files of the caller."""
    findings = found(tmp_path, Config())
    assert findings["lazyfsd"].verdict == "missing"
    assert "systemctl start" in findings["lazyfsd"].hint
    assert set(findings) == {"lazyfsd", "files"}


def test_it_serves(tmp_path: Path) -> None:
    """Its process is looked into: its mount namespace and its limit are those of this test."""
    with answering(tmp_path, serving(os.getpid())):
        findings = found(tmp_path, Config(containerds={"a": tmp_path / "none.sock"}))
    assert findings["lazyfsd"].verdict == "ok"
    assert findings["namespace"].verdict == "ok"
    assert findings["files"].text.startswith("lazyfsd may open")
    assert findings["snapshotter.a"].verdict == "missing"
    assert "there is no such socket" in findings["snapshotter.a"].text


@pytest.mark.root
def test_it_is_somewhere_else(tmp_path: Path) -> None:
    """A daemon in its own mount namespace, as with a hardened unit, is reported: its mounts are not visible."""
    with subprocess.Popen(["unshare", "--mount", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdin is not None and elsewhere.stdout is not None
        elsewhere.stdin.write(b"here\n")
        elsewhere.stdin.flush()
        elsewhere.stdout.readline()
        with answering(tmp_path, serving(elsewhere.pid)):
            findings = found(tmp_path, Config(containerds={}))
        elsewhere.stdin.close()
    assert findings["namespace"].verdict == "missing"
    assert "ProtectSystem" in findings["namespace"].hint


def test_it_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that hangs is not waited for."""
    monkeypatch.setattr(service, "_PATIENCE", 0.2)
    with answering(tmp_path, b""):
        findings = found(tmp_path, Config())
    assert "has not answered for" in findings["lazyfsd"].text


def test_a_snapshotter_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that accepts calls and does not answer is reported by name."""
    monkeypatch.setattr(service, "_PATIENCE", 0.5)
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / "stuck.sock"))
        stuck.listen()
        with answering(tmp_path, serving(os.getpid())):
            findings = found(tmp_path, Config(containerds={"b": tmp_path / "stuck.sock"}))
    assert findings["snapshotter.b"].verdict == "missing"
    assert "deadline_exceeded" in findings["snapshotter.b"].text or "unavailable" in findings["snapshotter.b"].text


def test_configuration(tmp_path: Path) -> None:
    """A missing configuration is a loss, a valid one is fine, and an error is reported with its line."""
    path = tmp_path / "config.toml"
    assert read_config(path)[1].verdict == "loss"
    path.write_text('log_level = "error"\n')
    config, finding = read_config(path)
    assert (config.log_level, finding.verdict) == ("error", "ok")
    path.write_text("stor = 1\n")
    assert "line 1" in read_config(path)[1].text
