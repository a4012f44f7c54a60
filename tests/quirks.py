"""What a registry can do that the textbook does not: changes of an honest registry's answers, for the table in quirk_table.py.

Each function makes a quirk from nothing (`Callable[[], Quirk]`), because some of them count, and every client gets its own.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tests.quirky_registry import TOKEN, Kind, Quirk, Request, Response


def at(*kinds: Kind, status: int = 0, rewrite: Callable[[bytes], bytes] = bytes, **fields: Any) -> Callable[[], Quirk]:
    """Change the successful answers of these kinds: fields of the Response, and headers written `Content_Type="…"` ("-": none)."""

    def quirk(request: Request, response: Response) -> Response:
        if request.kind not in kinds or response.status not in {200, 206}:
            return response
        headers = dict(response.headers)
        for name, value in fields.items():
            if name[0].isupper():
                headers.pop(name.replace("_", "-"), None)
                if value != "-":
                    headers[name.replace("_", "-")] = value
        own = {name: value for name, value in fields.items() if name[0].islower()}
        return dataclasses.replace(response, headers=headers, status=status or response.status, rewrite=rewrite, **own)

    return lambda: quirk


def encoded(kind: Kind, name: str, encode: Callable[[bytes], bytes]) -> Callable[[], Quirk]:
    """The body comes encoded, whatever the client said that it takes."""

    def quirk(request: Request, response: Response) -> Response:
        if request.kind != kind or request.method != "GET" or response.status != 200:
            return response
        return dataclasses.replace(response, headers={**response.headers, "Content-Encoding": name}, body=encode(response.body))

    return lambda: quirk


def once(kind: Kind, trouble: Callable[[Response], Response], *, times: int = 1) -> Callable[[], Quirk]:
    """The first GETs of each object, whatever range of it they want, meet `trouble`."""

    def make() -> Quirk:
        met: dict[str, int] = {}

        def quirk(request: Request, response: Response) -> Response:
            if request.kind != kind or request.method != "GET" or response.status not in {200, 206}:
                return response
            met[request.target] = met.get(request.target, 0) + 1
            return trouble(response) if met[request.target] <= times else response

        return quirk

    return make


def cut(response: Response) -> Response:
    """Half of it, and the end of the connection."""
    return dataclasses.replace(response, cut=len(response.body) // 2)


def wrong(response: Response) -> Response:
    """One bit is another."""
    body = bytearray(response.body)
    body[len(body) // 2] ^= 1
    return dataclasses.replace(response, body=bytes(body))


def without_bodies(request: Request, response: Response) -> Response:
    """Refusals promise a body, and break off."""
    if response.status < 300:
        return response
    return dataclasses.replace(response, headers={**response.headers, "Content-Length": "500"}, body=b"", cut=0)


def hung_up(response: Response) -> Response:
    return dataclasses.replace(response, cut=-1)


def answers(status: int, **headers: str) -> Callable[[Response], Response]:
    """Another answer instead."""
    return lambda _: Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"{}")


def ranges(change: Callable[[Request, Response], Response]) -> Callable[[], Quirk]:
    """Change the answers to range requests for blobs."""

    def quirk(request: Request, response: Response) -> Response:
        return change(request, response) if request.kind == "blob" and response.status == 206 else response

    return lambda: quirk


def refused(status: int) -> Callable[[], Quirk]:
    return ranges(lambda _request, _response: Response(status, {}, b""))


def spelled(form: str) -> Callable[[], Quirk]:
    """Content-Range in another spelling: `form` knows `start`, `end` and `size`."""

    def change(_request: Request, response: Response) -> Response:
        numbers, _, size = response.headers["Content-Range"].removeprefix("bytes ").partition("/")
        start, _, end = numbers.partition("-")
        headers = {**response.headers, "Content-Range": form.format(start=start, end=end, size=size)}
        return dataclasses.replace(response, headers=headers)

    return ranges(change)


def short(_request: Request, response: Response) -> Response:
    """A 206 that grants at most 64 KiB, and says so."""
    body = response.body[: 64 << 10]
    start = response.headers["Content-Range"].removeprefix("bytes ").partition("-")[0]
    size = response.headers["Content-Range"].rpartition("/")[2]
    content_range = f"bytes {start}-{int(start) + len(body) - 1}/{size}"
    return dataclasses.replace(response, headers={**response.headers, "Content-Range": content_range}, body=body)


def whole(_request: Request, response: Response) -> Response:
    """The range is ignored."""
    return Response(200, {"Content-Type": "application/octet-stream"}, response.blob)


def redirect(kind: Kind, status: int, location: str) -> Callable[[], Quirk]:
    """To the same thing under another name, once; `location` knows `target`, `host`, `port` and `beside`."""

    def quirk(request: Request, response: Response) -> Response:
        if request.kind != kind or "moved" in request.target or response.status >= 300:
            return response
        mark = "&moved=1" if "?" in request.target else "?moved=1"
        port = request.host.rpartition(":")[2]
        return Response(
            status,
            {"Location": location.format(target=request.target + mark, host=request.host, port=port, beside=request.beside)},
        )

    return lambda: quirk


def redirected_without_a_body(kind: Kind) -> Callable[[], Quirk]:
    """As `redirect`, and as `without_bodies`."""
    moved = redirect(kind, 307, "{target}")()
    return lambda: lambda request, response: without_bodies(request, moved(request, response))


SIGNED = "sig=a/b+c=%2f%2F,;:@!$'()*|\"<>[]{}^`~\\"


def signed(kind: Kind, status: int) -> Callable[[], Quirk]:
    """A redirect to a place that wants to be asked for in exactly the same letters."""

    def quirk(request: Request, response: Response) -> Response:
        if request.kind != kind or response.status >= 300:
            return response
        if "sig=" not in request.target:
            return Response(status, {"Location": f"{request.target}?{SIGNED}"})
        return response if request.target.endswith(f"?{SIGNED}") else Response(403)

    return lambda: quirk


def many_redirects(kind: Kind, count: int) -> Callable[[], Quirk]:
    """A way of so many steps."""

    def quirk(request: Request, response: Response) -> Response:
        step = request.target.count("z")
        if request.kind != kind or response.status >= 300 or step == count:
            return response
        return Response(307, {"Location": request.target + ("z" if step else "?z")})

    return lambda: quirk


def moves_to_itself(kind: Kind) -> Callable[[], Quirk]:
    """The first time each URL is asked for it leads to itself."""

    def make() -> Quirk:
        met: set[tuple[str, str]] = set()

        def quirk(request: Request, response: Response) -> Response:
            if request.kind != kind or response.status >= 300 or (request.method, request.target) in met:
                return response
            met.add((request.method, request.target))
            return Response(307, {"Location": request.target})

        return quirk

    return make


def elsewhere_without_authorization(status: int) -> Callable[[], Quirk]:
    """Blobs are on a host that refuses requests with a token, as S3 does, and does not know the registry's."""

    def quirk(request: Request, response: Response) -> Response:
        if request.kind != "blob":
            return response
        if "moved" in request.target:
            return Response(400) if "authorization" in request.headers else request.right()
        port = request.host.rpartition(":")[2]
        return (
            Response(status, {"Location": f"http://localhost:{port}{request.target}?moved=1"})
            if response.status < 300
            else response
        )

    return lambda: quirk


def logged_in(kind: Kind, spelled: str) -> Callable[[], Quirk]:
    """They are with somebody who wants the user and the password that stand in the URL he is found by."""
    moved = redirect(kind, 307, f"http://{spelled}@localhost:{{port}}{{target}}")()

    def quirk(request: Request, response: Response) -> Response:
        if request.kind == kind and "moved" in request.target:
            wanted = base64.b64encode(unquote(spelled).encode()).decode()
            right = response if kind == "token" else request.right()
            return right if request.headers.get("authorization") == f"Basic {wanted}" else Response(403)
        return moved(request, response)

    return lambda: quirk


def foreign(media_type: str, *urls: str, status: int = 404, is_here: bool = False) -> Callable[[], Quirk]:
    """The layers are at `urls`, on a host that refuses requests with a token; the registry answers `status` for them (`is_here`: has them)."""
    there = "/there/blobs/"

    def make() -> Quirk:
        changed: dict[str, Response] = {}
        """Manifests, by their digests."""

        def quirk(request: Request, response: Response) -> Response:
            digest = request.target.rpartition("/")[2]
            if request.target.startswith(there):
                return Response(403) if "authorization" in request.headers else request.right()
            if response.status == 401:
                return response
            if request.kind == "blob" and not is_here and not response.body.startswith(b"{"):
                return Response(status, {"Content-Type": "application/json"}, b'{"errors": []}')
            if request.kind != "manifest":
                return response
            if digest in changed:
                return dataclasses.replace(changed[digest])
            document = json.loads(response.body)
            for layer in document["layers"]:
                layer["mediaType"] = media_type
                right = f"http://{request.host}{there}{layer['digest']}"
                layer["urls"] = [url.format(right=right, host=request.host) for url in urls]
            body = json.dumps(document).encode()
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            changed[digest] = dataclasses.replace(
                response, headers={**response.headers, "Docker-Content-Digest": digest}, body=body
            )
            return dataclasses.replace(changed[digest])

        return quirk

    return make


def cookies(request: Request, response: Response) -> Response:
    """Cookies are set, and a client that sends one back is treated as a browser."""
    if "cookie" in request.headers:
        return Response(403, {}, b'{"errors": [{"code": "DENIED", "message": "CSRF token invalid"}]}')
    return dataclasses.replace(response, headers={**response.headers, "Set-Cookie": "sid=1; Path=/; HttpOnly"})


def redirected_upload(status: int) -> Callable[[], Quirk]:
    """POST is sent elsewhere."""

    def quirk(request: Request, response: Response) -> Response:
        if request.kind != "upload" or request.method != "POST" or "moved" in request.target:
            return response
        return Response(status, {"Location": f"{request.target}?moved=1"})

    return lambda: quirk


def challenge(form: str) -> Callable[[], Quirk]:
    """WWW-Authenticate in another spelling: `form` knows `realm`, `host` and `scope`."""

    def quirk(request: Request, response: Response) -> Response:
        if response.status != 401:
            return response
        value = form.format(realm=f"http://{request.host}/token", host=request.host, scope="repository:image:pull")
        return dataclasses.replace(response, headers={"WWW-Authenticate": value})

    return lambda: quirk


def realm_logs_in() -> Quirk:
    """The realm's URL holds the user and the password that the token server wants."""
    challenged = challenge('Bearer realm="http://user:pass@{host}/token",service="registry"')()

    def quirk(request: Request, response: Response) -> Response:
        wanted = f"Basic {base64.b64encode(b'user:pass').decode()}"
        if request.kind == "token" and request.headers.get("authorization") != wanted:
            return Response(403)
        return challenged(request, response)

    return quirk


def token(text: str, **headers: str) -> Callable[[], Quirk]:
    """The token server's answer; TOKEN stands for a good one."""
    return at("token", body=text.replace("TOKEN", json.dumps(TOKEN)).encode(), **headers)


def head(*, old: bytes = b"", new: bytes = b"", kinds: tuple[Kind, ...] = ("manifest", "blob")) -> Callable[[], Quirk]:
    """The bytes of the head, changed."""
    return at(*kinds, rewrite=lambda data: data.replace(old, new))


def no_head(status: int) -> Callable[[], Quirk]:
    """HEAD is not served."""
    return lambda: lambda request, response: Response(status, {}, b"") if request.method == "HEAD" else response


def uploads(change: Callable[[Request, Response], Response], *methods: str) -> Callable[[], Quirk]:
    """Change the successful answers to these steps of an upload."""

    def quirk(request: Request, response: Response) -> Response:
        good = request.kind == "upload" and request.method in methods and response.status < 300
        return change(request, response) if good else response

    return lambda: quirk


def fields_of(*methods: str, status: int = 0, **fields: str) -> Callable[[], Quirk]:
    """Other headers, or another status, in the answers to these steps of an upload; `{location}` is the right location."""

    def change(request: Request, response: Response) -> Response:
        headers = dict(response.headers)
        for name, value in fields.items():
            right = headers.pop(name.replace("_", "-"), "")
            if value != "-":
                headers[name.replace("_", "-")] = value.format(location=right, host=request.host)
        return dataclasses.replace(response, headers=headers, status=status or response.status)

    return uploads(change, *methods)


def broken_upload(method: str, trouble: Response) -> Callable[[], Quirk]:
    """The first such step with a body comes to nothing: the registry has kept none of it, and answers, or hangs up."""

    def make() -> Quirk:
        met: list[str] = []

        def quirk(request: Request, response: Response) -> Response:
            if request.kind == "upload" and request.method == method and request.body and not met:
                met.append(request.target)
                return trouble
            return response

        return quirk

    return make
