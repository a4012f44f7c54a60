"""A registry in threads that serves one OCI layout, takes pushes, and answers with the quirks that a test gives it.

Unlike the scripted server it reads requests with the standard library's parser, because Go's clients talk to it, and it builds an
answer as a value, which a quirk changes before it is written: status, fields, body, framing, and the place where the connection breaks.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

REPOSITORY = "image"
TOKEN = "the-token"
CREDENTIALS = "me:secret"
REF_NAME = "org.opencontainers.image.ref.name"

Kind = Literal["ping", "manifest", "blob", "token", "upload"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One request; `headers` by lower-case names."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    kind: Kind
    host: str
    """The host and port of the registry itself."""
    beside: str
    """The host and port of a token server with TLS."""
    right: Callable[[], Response]
    """What a registry without tokens answers."""

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@dataclasses.dataclass
class Response:
    """What is about to be answered. `headers` keep their spelling; Content-Length is added last, where the framing has one."""

    status: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    framing: Literal["length", "chunked", "close"] = "length"
    cut: int | None = None
    """Close the connection after so many bytes of the body, or, where it is negative, without any answer."""
    rewrite: Callable[[bytes], bytes] = bytes
    """Applied to the finished head, empty line included."""
    chunk: Callable[[int], bytes] = b"%X".__mod__
    """The line before a chunk, without its end."""
    size_ends: bytes = b"\r\n"
    """What ends that line."""
    last_chunk: bytes = b"0\r\n\r\n"
    tail: bytes = b""
    """Sent behind the body, of which it is not a part."""
    answers_head: bool = False
    """The body is sent to HEAD as well."""
    blob: bytes = b""
    """All of it, where a range of it is answered."""

    def written(self, *, with_body: bool) -> bytes:
        fields = dict(self.headers)
        body = self.body
        if self.framing == "length" and self.status != 204:
            fields.setdefault("Content-Length", str(len(body)))
        elif self.framing == "chunked":
            fields["Transfer-Encoding"] = "chunked"
            pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
            body = b"".join(b"%s%s%s\r\n" % (self.chunk(len(piece)), self.size_ends, piece) for piece in pieces) + self.last_chunk
        elif self.framing == "close":
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name}: {value}" for name, value in fields.items())]
        head = self.rewrite(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        return head + (body[: self.cut] if with_body or self.answers_head else b"") + self.tail


Quirk = Callable[[Request, Response], Response]


def honest(_request: Request, response: Response) -> Response:
    """The registry without a quirk."""
    return response


class QuirkyRegistry(ThreadingHTTPServer):
    """The layout in `path` as the repository `image`; with `tokens`, only for those who have fetched one.

    With `credentials` those get a token who show CREDENTIALS; so they have to where the query says `guarded=1`. `beside` is another registry, with TLS, that gives tokens as well.
    """

    daemon_threads = False
    request_queue_size = 128

    def __init__(
        self,
        path: Path | None,
        quirk: Quirk = honest,
        *,
        tokens: bool = False,
        credentials: bool = False,
        beside: QuirkyRegistry | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path, self.quirk, self.tokens, self.credentials = path, quirk, tokens, credentials
        self.beside = beside.host if beside else ""
        self.requests: list[Request] = []
        self.pushed: dict[str, bytes] = {}
        """Blobs by digest, and manifests by digest and by tag."""
        self.uploads: dict[str, bytes] = {}
        self.lock = threading.Lock()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def image(self) -> str:
        return f"{self.host}/{REPOSITORY}:v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up, and are hung up on."""

    def answer(self, request: Request) -> Response:
        """What an honest registry answers."""
        if request.kind == "token":
            return self._token(request)
        if self.tokens and request.headers.get("authorization") != f"Bearer {TOKEN}":
            challenge = f'Bearer realm="http://{self.host}/token",service="registry",scope="repository:{REPOSITORY}:pull"'
            return Response(401, {"WWW-Authenticate": challenge, "Content-Type": "application/json"}, b'{"errors": []}')
        return self.granted(request)

    def granted(self, request: Request) -> Response:
        """The response to a request with a token."""
        if request.kind == "ping":
            return Response(200, {"Docker-Distribution-API-Version": "registry/2.0"}, b"{}")
        if request.kind == "upload":
            return self._upload(request)
        name = urlsplit(request.target).path.rpartition("/")[2]
        if request.method == "PUT":
            digest = _sha256(request.body)
            with self.lock:
                self.pushed[name] = self.pushed[digest] = request.body
            return Response(201, {"Location": request.target, "Docker-Content-Digest": digest})
        return self._stored(request, name)

    def _token(self, request: Request) -> Response:
        basic = "Basic " + base64.b64encode(CREDENTIALS.encode()).decode()
        form = parse_qs(request.body.decode())
        shown = ":".join((form.get("username", [""])[0], form.get("password", [""])[0]))
        guarded = self.credentials or "guarded" in request.query
        if guarded and request.headers.get("authorization") != basic and shown != CREDENTIALS:
            return Response(401, {"Content-Type": "application/json"}, b"{}")
        found = {"token": TOKEN, "access_token": TOKEN, "expires_in": 300}
        return Response(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def _stored(self, request: Request, name: str) -> Response:
        data = self._find(name)
        if data is None:
            return Response(404, {"Content-Type": "application/json"}, b'{"errors": [{"code": "NOT_FOUND"}]}')
        fields = {"Docker-Content-Digest": _sha256(data)}
        if request.kind == "manifest":
            return Response(200, {**fields, "Content-Type": json.loads(data)["mediaType"]}, data)
        fields |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return Response(200, fields, data)
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        return Response(206, {**fields, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end], blob=data)

    def _find(self, name: str) -> bytes | None:
        if name in self.pushed:
            return self.pushed[name]
        if self.path is None:
            return None
        if ":" not in name:
            entries = json.loads((self.path / "index.json").read_bytes())["manifests"]
            name = next((entry["digest"] for entry in entries if entry["annotations"][REF_NAME] == name), "")
        blob = self.path / "blobs" / "sha256" / name.removeprefix("sha256:")
        return blob.read_bytes() if name and blob.is_file() else None

    def _upload(self, request: Request) -> Response:
        with self.lock:
            number = urlsplit(request.target).path.rpartition("/")[2]
            if request.method == "POST":
                number = str(len(self.uploads))
                self.uploads[number] = b""
            elif request.method != "GET":
                self.uploads[number] += request.body
            location = f"/v2/{REPOSITORY}/blobs/uploads/{number}?state=1"
            if request.method == "PUT":
                digest = request.query["digest"][0]
                if _sha256(self.uploads[number]) != digest:
                    return Response(400, {}, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
                self.pushed[digest] = self.uploads.pop(number)
                return Response(201, {"Location": f"/v2/{REPOSITORY}/blobs/{digest}", "Docker-Content-Digest": digest})
            fields = {"Location": location, "Docker-Upload-UUID": number, "Range": f"0-{max(0, len(self.uploads[number]) - 1)}"}
            return Response(204 if request.method == "GET" else 202, fields)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: QuirkyRegistry

    def _handle(self) -> None:
        server = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            self.command,
            self.path,
            headers,
            self._body(),
            _kind(self.path),
            server.host,
            server.beside,
            lambda: server.granted(request),
        )
        with server.lock:
            server.requests.append(request)
        response = server.quirk(request, server.answer(request))
        if response.cut is None or response.cut >= 0:
            self.wfile.write(response.written(with_body=self.command != "HEAD"))
        if response.cut is not None or response.framing == "close":
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _handle  # noqa: N815  the names that the base class looks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Say nothing."""


def _kind(target: str) -> Kind:
    path = urlsplit(target).path
    if "/blobs/uploads/" in path:
        return "upload"
    return "manifest" if "/manifests/" in path else "blob" if "/blobs/" in path else "token" if "/token" in path else "ping"


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@contextmanager
def serving(registry: QuirkyRegistry, tls: ssl.SSLContext | None = None) -> Iterator[QuirkyRegistry]:
    """`registry`, until the block ends."""
    if tls is not None:
        registry.socket = tls.wrap_socket(registry.socket, server_side=True)
    thread = threading.Thread(target=registry.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        registry.shutdown()
        registry.server_close()
        thread.join()
