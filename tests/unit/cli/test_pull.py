"""What `lazyfs pull` refuses before it asks anybody, and what it makes of a result."""

from __future__ import annotations

import json
import socket
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli import pull
from lazyfs.cli.main import main
from lazyfs.cli.progress import Display
from lazyfs.daemon.pulling import of_layer, result_of
from lazyfs.format.digest import digest_of
from lazyfs.pull.layers import PulledLayer
from lazyfs.pull.pull import PulledImage
from tests.lazyfsd import moments

DIGEST = digest_of(b"")


def test_a_layout_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """lazyfsd, another process at another time, fetches from registries alone."""
    assert main(["pull", "oci:somewhere:v1"]) == 2
    assert "not an image in a registry" in capsys.readouterr().err


def test_without_grpcio_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It is an extra: who only converts or mounts has no use for it."""
    for module in [name for name in sys.modules if name.startswith("lazyfs.pull")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert main(["pull", "python:3.12", "--address", str(tmp_path / "none"), "--store", str(tmp_path / "store")]) == 2
    assert "lazyfs[containerd]" in capsys.readouterr().err


class Daemon:
    """Stands in for lazyfsd at the socket of a state directory: sends fixed lines to every client."""

    def __init__(self, store: Path, *said: dict[str, Any]) -> None:
        store.mkdir()
        self._said = b"".join(json.dumps(each).encode() + b"\n" for each in said)
        self.asked: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(store / "lazyfsd.sock"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        held = []
        with suppress(OSError):  # shut down
            while True:
                connection, _ = self._listener.accept()
                held.append(connection)
                self.asked.append(connection.recv(1 << 16))
                connection.sendall(self._said)
        for connection in held:
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


HERE = "there is no containerd at"
"""What the command finds out when it pulls by itself."""


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ([{"error": "lazyfsd does not understand this client", "code": 1}], 5, HERE),
        ([], 5, HERE),
        ([{"accepted": True}, {"error": "the registry is away", "code": 4}], 4, "the registry is away"),
    ],
    ids=["an older one", "one that does not come up", "one that has failed"],
)
def test_a_pull_by_lazyfsd(
    said: list[dict[str, Any]],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If lazyfsd does not accept the order, the command pulls by itself; if it does, its result counts."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pull, "_ACCEPT_TIMEOUT", 60 if said else 0.2)
    with closing(Daemon(tmp_path / "store", *said)) as daemon:
        assert main(["pull", "python:3.12", "--address", str(tmp_path / "none"), "--store", str(tmp_path / "store")]) == code
        assert any(daemon.asked for _ in moments())
    assert words in capsys.readouterr().err
    assert b'"reference":"python:3.12"' in daemon.asked[0]


@pytest.mark.parametrize("name", ["DOCKER_CONFIG", "https_proxy", "SSL_CERT_FILE"])
def test_what_lazyfsd_cannot_know_is_done_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its environment is another one: it is not even asked."""
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:1" if name.endswith("proxy") else str(tmp_path))
    with closing(Daemon(tmp_path / "store", {"accepted": True}, {"error": "by lazyfsd", "code": 1})) as daemon:
        assert main(["pull", "python:3.12", "--address", str(tmp_path / "none"), "--store", str(tmp_path / "store")]) == 5
    assert HERE in capsys.readouterr().err
    assert not daemon.asked


def test_layers_that_are_not_lazy_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each at once, and how many in the end."""
    layers = tuple(PulledLayer(DIGEST, 5, DIGEST, reason) for reason in ("", "was not converted", ""))
    with Display() as display:
        display.show(of_layer(layers[1]))
    assert capsys.readouterr().err == f"lazyfs: layer {DIGEST} was not converted\n"
    assert (
        pull._describe(result_of(PulledImage("host/repo:v1", DIGEST, DIGEST, layers)))
        == f"host/repo:v1 {DIGEST}: 2 of 3 layers lazy"
    )
