"""Registries that are away, refuse, or lie: one line a case says what one answers, and what the user is told."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from lazyfs.cli.main import main
from lazyfs.registry import body, retry, tls
from tests.bad import make
from tests.bad.oci import DATA, Oci
from tests.lying_registry import Hosted, Lie, LyingRegistry
from tests.unit.registry.scripted import Answer, Proxy, Reply, Request, reply

HEAD_END = b"\r\n\r\n"


def on_ranges(lie: Lie) -> Lie:
    """A lie about bytes of layers only."""
    return lambda request, right: lie(request, right) if "range" in request.headers else right


def on_layers(lie: Lie) -> Lie:
    """A lie about layers, also when all of one is asked for after a range of it."""
    layers: set[str] = set()

    def about_layers(request: Request, right: bytes) -> Answer:
        if "range" in request.headers:
            layers.add(request.target)
        return lie(request, right) if request.target in layers else right

    return about_layers


def on_manifests(lie: Lie) -> Lie:
    """A lie about manifests only."""
    return lambda request, right: lie(request, right) if "/manifests/" in request.target else right


def body_of(right: bytes) -> bytes:
    return right.partition(HEAD_END)[2]


def shifted(request: Request, right: bytes) -> bytes:
    """The bytes that were asked for, said to be others."""
    start, _, end = request.headers["range"].removeprefix("bytes=").partition("-")
    return right.replace(f"bytes {start}-{end}/".encode(), f"bytes {int(start) + 1}-{int(end) + 1}/".encode())


def resized(request: Request, right: bytes) -> bytes:
    """The bytes that were asked for, of a blob said to be larger."""
    head, _, rest = right.partition(HEAD_END)
    return head.replace(b"content-range: ", b"x: ") + f"\r\ncontent-range: {content_range(right)}0".encode() + HEAD_END + rest


def content_range(right: bytes) -> str:
    lines = right.partition(HEAD_END)[0].decode().split("\r\n")
    return next(line for line in lines if line.startswith("content-range: ")).removeprefix("content-range: ")


def zeros(request: Request, right: bytes) -> bytes:
    """As many bytes as were asked for, and none of them right."""
    head, end, rest = right.partition(HEAD_END)
    return head + end + bytes(len(rest))


def redirect(to: str) -> Lie:
    return lambda request, right: reply(307, location=to)


class Bad(NamedTuple):
    """What is asked (`ls` needs the TOC, `cat` a chunk as well), the lie, and what comes of it. HOST stands for the registry's address."""

    name: str
    command: str
    lie: Lie
    code: int
    words: tuple[str, ...]


TABLE = [
    # Refusals
    Bad("wants a password", "ls", lambda request, right: reply(401, www_authenticate='Basic realm="x"'), 4, ("HOST",)),
    Bad("wants what we cannot give", "ls", lambda request, right: reply(401, www_authenticate="Negotiate"), 4, ("HOST", "neither Basic nor Bearer")),
    Bad("forbidden", "ls", lambda request, right: reply(403), 4, ("docker://HOST/image:v1", "403")),
    Bad("forbidden blobs", "ls", on_layers(lambda request, right: reply(403)), 4, ("blob LAYER of docker://HOST/image", "403")),
    Bad("gone", "ls", lambda request, right: reply(404), 4, ("docker://HOST/image:v1", "404")),
    Bad("gone blobs", "ls", on_ranges(lambda request, right: reply(404)), 4, ("blob LAYER of docker://HOST/image", "404")),
    Bad("too many requests", "ls", lambda request, right: reply(429), 4, ("docker://HOST/image:v1", "429")),
    Bad("in trouble", "ls", lambda request, right: reply(503), 4, ("docker://HOST/image:v1", "503")),
    Bad("in trouble with blobs", "ls", on_layers(lambda request, right: reply(500)), 4, ("blob LAYER of docker://HOST/image", "500")),
    Bad("hangs up", "ls", lambda request, right: Reply(b"", "close"), 4, ("HOST",)),
    Bad("hangs up on blobs", "ls", on_ranges(lambda request, right: Reply(b"", "close")), 4, ("HOST", "closed the connection")),
    Bad("no HTTP", "ls", lambda request, right: Reply(b"SSH-2.0-OpenSSH\r\n\r\n", "close"), 4, ("HOST",)),
    Bad("no HTTP for blobs", "ls", on_ranges(lambda request, right: Reply(b"SSH-2.0-OpenSSH\r\n\r\n", "close")), 4, ("not HTTP/1.1",)),
    # Redirects
    Bad("redirect to itself", "ls", lambda request, right: reply(307, location=request.target), 4, ("HOST redirects in a circle",)),
    Bad("blobs redirect to themselves", "ls", on_ranges(lambda request, right: reply(307, location=request.target)), 4, ("LAYER", "HOST redirects in a circle")),
    Bad("redirect on and on", "ls", lambda request, right: reply(307, location=request.target + "x"), 4, ("redirected more than 10 times",)),
    Bad("redirect to nowhere", "ls", lambda request, right: reply(307), 4, ("HOST", "307 without saying where to")),
    Bad("redirect to a file", "ls", redirect("file:///etc/passwd"), 4, ("not a plain http or https URL",)),
    Bad("redirect with a line break", "ls", redirect("http://127.0.0.1/\x0bx"), 4, ("HOST",)),
    # Documents
    Bad("another manifest", "ls", on_manifests(lambda request, right: reply(200, b'{"schemaVersion": 2, "layers": []}')), 3, ("docker://HOST/image@", "config")),
    Bad("a page", "ls", on_manifests(lambda request, right: reply(200, b"<html>", content_type="text/html")), 3, ("docker://HOST/image@", "not JSON")),
    Bad("an endless manifest", "ls", on_manifests(lambda request, right: reply(200, bytes(5 << 20))), 4, ("HOST sends over 4194304 bytes",)),
    # Ranges
    Bad("another range", "ls", on_ranges(shifted), 4, ("LAYER", "HOST answers a request for bytes")),
    Bad("a range of a larger blob", "ls", on_ranges(resized), 4, ("LAYER", "HOST answers a request for bytes")),
    Bad("a range that it does not name, and of another length", "ls", on_ranges(lambda request, right: reply(206, body_of(right)[:-1])), 4, ("LAYER", "'no range'")),
    Bad("several ranges", "ls", on_ranges(lambda request, right: reply(206, b"x", content_type="multipart/byteranges; boundary=x")), 4, ("LAYER", "several ranges")),
    Bad("too little, and says so", "ls", on_ranges(lambda request, right: reply(206, body_of(right)[:-1], content_range=content_range(right))), 4, ("LAYER", "with a body of")),
    Bad("too much, and says so", "ls", on_ranges(lambda request, right: reply(206, body_of(right) + b"x", content_range=content_range(right))), 4, ("LAYER", "with a body of")),
    Bad("too little, and hangs up", "ls", on_ranges(lambda request, right: Reply(right[:-1], "close")), 4, ("LAYER", "the sender broke off with 1 bytes to come")),
    Bad("another whole blob", "ls", on_ranges(lambda request, right: reply(200, b"something else")), 4, ("LAYER", "with a whole blob of 14 bytes")),
    Bad("other bytes", "ls", on_ranges(zeros), 3, ("LAYER", "without an eStargz footer")),
    Bad("two lengths", "ls", on_ranges(lambda request, right: right.replace(b"\r\n", b"\r\ncontent-length: 1\r\n", 1)), 4, ("two content-length",)),
]  # fmt: skip


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.0001)
    monkeypatch.setattr(body, "_PAUSE", 0.0001)


@pytest.fixture
def oci(tmp_path: Path) -> Oci:
    """A sound image."""
    oci = Oci(tmp_path / "src")
    make.sound(oci)
    return oci


def run(command: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what was told."""
    path = ["/file"] if command == "cat" else []
    code = main([command, f"{image}:v1", *path, "--store", str(tmp_path / "store")])
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith("lazyfs: ") and output.err.count("\n") == 1
    return code, output.err


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_bad_registry(bad: Bad, oci: Oci, tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    """What a registry does wrong is told as its doing; nothing of it is kept."""
    with LyingRegistry(oci.path) as registry:
        registry.lie = bad.lie
        code, output = run(bad.command, registry.image, tmp_path, capsys)
        assert code == bad.code
        for word in bad.words:
            assert word.replace("HOST", registry.server.host).replace("LAYER", oci.layer) in output
        registry.lie = None
        assert main(["cat", f"{registry.image}:v1", "file", "--store", str(tmp_path / "store")]) == 0
        assert capsys.readouterr().out == DATA.decode()


def test_registry_that_is_away(oci: Oci, tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody listens: the address is named, and what the tag last was, once it was seen."""
    with LyingRegistry(oci.path) as registry:
        assert main(["ls", f"{registry.image}:v1", "--store", str(tmp_path / "store")]) == 0
    capsys.readouterr()
    code, output = run("ls", registry.image, tmp_path, capsys)
    assert code == 4
    assert f"cannot reach {registry.server.host}" in output and f"last seen as {registry.image}@sha256:" in output
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, output = run("cat", f"docker://127.0.0.1:{port}/image", tmp_path, capsys)
    assert code == 4
    assert f"cannot reach 127.0.0.1:{port}" in output


@pytest.mark.parametrize("name", ["another range", "too little, and says so", "too little, and hangs up", "forbidden blobs"])
def test_bad_registry_is_not_converted(name: str, tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be downloaded whole and right is not converted in part: the destination stays empty."""
    bad = next(bad for bad in TABLE if bad.name == name)
    oci = Oci(tmp_path / "src")
    make.convertible(oci)
    with LyingRegistry(oci.path) as registry:
        registry.lie = bad.lie
        assert main(["convert", registry.image + ":v1", f"oci:{tmp_path}/dst:v1"]) == bad.code
        output = capsys.readouterr().err
        for word in bad.words:
            assert word.replace("HOST", registry.server.host).replace("LAYER", oci.layer) in output
        assert not (tmp_path / "dst").exists()
        registry.lie = None
        assert main(["convert", registry.image + ":v1", f"oci:{tmp_path}/dst:v1"]) == 0


class Cutting:
    """Half of every range that is asked for, until it is asked for by itself; and none of the first."""

    def __init__(self) -> None:
        self.cuts = 0

    def __call__(self, request: Request, right: bytes) -> Answer:
        body = body_of(right)
        if len(body) < 100:
            return right
        self.cuts += 1
        return Reply(right[: len(right) - len(body) // 2] if self.cuts > 1 else right[: -len(body)], "close")


@pytest.mark.parametrize("command", ["ls", "cat", "convert"])
def test_registry_that_cuts_everything(command: str, tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer breaks off in the middle, those to the footer and the TOC as well: it takes more of them, and is not an error."""
    oci = Oci(tmp_path / "src")
    make.convertible(oci) if command == "convert" else make.sound(oci)
    with LyingRegistry(oci.path) as registry:
        registry.lie = on_ranges(cutting := Cutting())
        image = registry.image + ":v1"
        rest = {"cat": ["file"], "convert": [f"oci:{tmp_path}/dst:v1"]}.get(command, [])
        rest += ["--store", str(tmp_path / "store")] if command in {"ls", "cat"} else []
        assert main([command, image, *rest]) == 0
    assert cutting.cuts > 1
    output = capsys.readouterr()
    assert "file" in output.out or output.out == DATA.decode() or command == "convert"
    assert "broke off" not in output.err


@pytest.mark.parametrize("case", ["bad_upper_layer", "plain_layer_of_another_diff_id", "wasm_module", "config_missing"])
def test_bad_image_sends_nothing(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A registry as the destination is not even asked to take what is good of a bad image."""
    oci = Oci(tmp_path / "src")
    getattr(make, case)(oci)
    (tmp_path / "dst").mkdir()
    with LyingRegistry(tmp_path / "dst") as registry:
        assert main(["convert", f"oci:{oci.path}:v1", registry.image + ":v1"]) in (3, 4)
        assert {request.method for request in registry.server.requests} <= {"GET", "HEAD"}
    assert capsys.readouterr().err.startswith("lazyfs: ")


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A CA that this process trusts."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls.system_context.cache_clear()
    return ca


@pytest.mark.parametrize("lie_about", [on_manifests, on_ranges], ids=["manifests", "blobs"])
def test_way_down_from_https_to_http(
    lie_about: Callable[[Lie], Lie],
    oci: Oci,
    tmp_path: Path,
    authority: trustme.CA,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A redirect that would give up TLS is not followed, for documents and blobs alike."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("registry.test").configure_cert(context)
    with (
        LyingRegistry(oci.path, context) as registry,
        LyingRegistry(oci.path) as plain,
        Hosted(Proxy([], registry.server.port)) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.server.host}")
        registry.lie = lie_about(lambda request, right: reply(307, location=f"http://{plain.server.host}{request.target}"))
        code, output = run("ls", "docker://registry.test/image", tmp_path, capsys)
        assert code == 4
        assert f"registry.test redirects from https to http ({plain.server.host})" in output
        assert not plain.server.requests
    tls.system_context.cache_clear()
