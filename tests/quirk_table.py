"""Registries as they are: one row a quirk, and how Debian's skopeo and containerd take it.

The rule is that lazyfs accepts what both peers accept. A row that a peer refuses names that peer: it keeps what was found out
about the others, and lazyfs may do as it likes, unless the row says that lazyfs has to get through.
"""

from __future__ import annotations

import dataclasses
import gzip
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

from tests.quirks import (
    answers,
    at,
    challenge,
    cookies,
    cut,
    elsewhere_without_authorization,
    encoded,
    foreign,
    head,
    hung_up,
    logged_in,
    many_redirects,
    moves_to_itself,
    no_head,
    once,
    ranges,
    realm_logs_in,
    redirect,
    redirected_without_a_body,
    refused,
    short,
    signed,
    spelled,
    token,
    whole,
    without_bodies,
    wrong,
)
from tests.quirky_registry import Quirk, Request, Response, honest

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


class Row(NamedTuple):
    """One quirk, created for each client."""

    name: str
    quirk: Callable[[], Quirk]
    refused_by: str = ""
    """`skopeo`, `containerd` or `both`; `?` where that depends on the moment."""
    required: bool = False
    """lazyfs succeeds, whether or not other clients do."""
    blobs: bool = False
    """It concerns blobs: a mount of the unconverted image is tried as well."""
    large: bool = False
    """One of the blobs is large."""
    tokens: bool = False
    credentials: bool = False
    slow: bool = False
    """One of several of a kind."""


def _closed_in_silence(request: Request, response: Response) -> Response:
    return dataclasses.replace(response, cut=len(response.body))


def _config_gzip(request: Request, response: Response) -> Response:
    if request.kind != "blob" or not response.body.startswith(b"{"):
        return response
    return dataclasses.replace(
        response, headers={**response.headers, "Content-Encoding": "gzip"}, body=gzip.compress(response.body)
    )


def documents() -> list[Row]:
    """Manifests: framing, encodings, types, redirects."""
    kind = "manifest"
    oci = "application/vnd.oci.image.manifest.v1+json"
    return [
        Row("manifest chunked", at(kind, framing="chunked")),
        Row("manifest ended by closing", at(kind, framing="close")),
        *(Row(f"manifest Content-Encoding {name!r}", at(kind, Content_Encoding=name)) for name in ("", "Identity", "aws-chunked", "utf-8")),
        Row("manifest gzip", encoded(kind, "gzip", gzip.compress)),
        Row("manifest GZIP", encoded(kind, "GZIP", gzip.compress), slow=True),
        Row("manifest x-gzip", encoded(kind, "x-gzip", gzip.compress), "both", required=True),
        Row("manifest deflate", encoded(kind, "deflate", zlib.compress), "both", required=True),
        Row("manifest without a type", at(kind, Content_Type="-"), "both", required=True),
        *(Row(f"manifest of type {name}", at(kind, Content_Type=name), "skopeo", required=True) for name in ("application/json", "application/octet-stream")),
        *(Row(f"manifest of type {name}", at(kind, Content_Type=name), "both", required=True, slow=";" in name) for name in ("text/plain", "text/plain; charset=utf-8")),
        *(Row(f"manifest of type {name}", at(kind, Content_Type=name)) for name in (f"{oci}; charset=utf-8", f"{oci};charset=UTF-8", oci.upper())),
        *(Row(f"manifest Docker-Content-Digest {name!r}", at(kind, Docker_Content_Digest=name)) for name in ("-", "")),
        Row("manifest Docker-Content-Digest odd", at(kind, Docker_Content_Digest="sha256:odd"), "containerd", required=True),
        Row("HEAD answers 405", no_head(405)),
        *(Row(f"HEAD answers {status}", no_head(status), "containerd", required=True, slow=True) for status in (404, 501)),
        *(
            Row(f"manifest redirected by {status} to {location}", redirect(kind, status, location), slow=status in {303, 308})
            for status, location in [
                (301, "{target}"),
                (302, "http://{host}{target}"),
                (303, "{target}"),
                (307, "http://localhost:{port}{target}"),
                (308, "//{host}{target}"),
                (307, "{target}#fragment"),
                (307, "{target}&odd=\xe9"),
                (307, "HTTP://{host}{target}"),
            ]
        ),
        Row("manifest redirected to where blanks are", redirect(kind, 307, "{target}&odd=a b"), "both", required=True),
    ]  # fmt: skip


def heads() -> list[Row]:
    """What stands before a body, of manifests and blobs."""
    long = b"\r\n" + b"X-Odd: %s\r\n" % (b"x" * 8000) * 10 + b"\r\n"
    return [
        Row("line feeds alone", head(old=b"\r\n", new=b"\n"), blobs=True),
        Row("cookies", lambda: cookies, tokens=True),
        Row("a line behind each body", at("manifest", "blob", tail=b"\r\n"), blobs=True),
        Row("rubbish behind each body", at("manifest", "blob", "token", tail=b"rubbish"), blobs=True, tokens=True),
        *(
            Row(f"{kind} behind {count} redirects", many_redirects(kind, count), blobs=kind == "blob")
            for kind, count in (("manifest", 9), ("blob", 9))
        ),
        Row("manifest that moves to itself", moves_to_itself("manifest")),
        Row("blob that moves to itself", moves_to_itself("blob"), blobs=True),
        Row("token that moves to itself", moves_to_itself("token"), tokens=True),
        Row("connections closed in silence", lambda: _closed_in_silence, blobs=True),
        Row(
            "odd chunks",
            at(
                "manifest",
                "blob",
                framing="chunked",
                chunk=lambda size: b"000%x;a=b" % size,
                last_chunk=b"0\r\nX-Odd: 1\r\n\r\n",
            ),
            blobs=True,
        ),
        Row(
            "chunks whose sizes end in line feeds",
            at("manifest", "blob", "token", framing="chunked", size_ends=b"\n", last_chunk=b"0\n\r\n"),
            blobs=True,
            tokens=True,
        ),
        Row("config gzip", lambda: _config_gzip),
        Row("foreign layers", foreign(FOREIGN, "{right}"), blobs=True, tokens=True),
        Row(
            "foreign layers, Docker's",
            foreign(DOCKER_FOREIGN, "ftp://{host}/x", "file:///etc/passwd", "http://{host}/there/blobs/missing", "{right}"),
            blobs=True,
            tokens=True,
            slow=True,
        ),
        Row("foreign layers that the registry forbids", foreign(FOREIGN, "{right}", status=403), blobs=True, slow=True),
        Row(
            "foreign layers that only the registry has",
            foreign(FOREIGN, "http://{host}/there/blobs/missing", is_here=True),
            "skopeo",
            required=True,
            blobs=True,
            slow=True,
        ),
        Row("blobs elsewhere, without authorization", elsewhere_without_authorization(307), blobs=True, tokens=True),
        Row("blob behind a URL with a password", logged_in("blob", "user:pass"), blobs=True),
        Row("manifest behind a URL with a password", logged_in("manifest", "u%40x:p%3Aw"), slow=True),
        Row("token behind a URL with a password", logged_in("token", "user:"), tokens=True, slow=True),
        Row("realm with a password", realm_logs_in, tokens=True, slow=True),
        Row("Accept-Ranges none", at("blob", Accept_Ranges="none"), blobs=True),
        Row("HEAD with a body", at("manifest", "blob", answers_head=True)),
        Row(
            "Content-Length twice",
            at("manifest", "blob", rewrite=lambda data: re.sub(rb"(\r\nContent-Length: \d+)", rb"\1\1", data)),
            blobs=True,
        ),
        Row("chunked with a length", at("manifest", "blob", framing="chunked", Content_Length="7"), blobs=True),
        Row("manifest redirected to a signed place", signed("manifest", 307)),
        Row("blob redirected to a signed place", signed("blob", 307), blobs=True),
        Row("token redirected to a signed place", signed("token", 307), tokens=True),
        Row("no reason", head(old=b" Said\r\n", new=b"\r\n"), blobs=True),
        Row("a blank and no reason", head(old=b" Said\r\n", new=b" \r\n"), slow=True),
        Row("HTTP/1.0", head(old=b"HTTP/1.1", new=b"HTTP/1.0"), blobs=True),
        Row("refusals without their bodies", lambda: without_bodies, blobs=True, tokens=True),
        *(
            Row(
                f"{kind} redirected without a body",
                redirected_without_a_body(kind),
                blobs=kind == "blob",
                tokens=kind == "token",
                slow=True,
            )
            for kind in ("manifest", "blob", "token")
        ),
        Row("an empty length", at("manifest", "blob", framing="close", Content_Length=""), blobs=True, slow=True),
        Row("a value with a carriage return", head(old=b"\r\n\r\n", new=b"\r\nX-Odd: a\rb\r\n\r\n"), blobs=True, slow=True),
        Row("every connection closed", at("manifest", "blob", "token", Connection="close"), tokens=True),
        Row("a folded field", head(old=b"\r\n\r\n", new=b"\r\nX-Odd: one\r\n  two\r\n\r\n"), blobs=True),
        Row("lower case", head(old=b"Content-", new=b"content-"), slow=True),
        Row("names with blanks", head(old=b"\r\n\r\n", new=b"\r\nX Odd: 1\r\n\r\n"), blobs=True, slow=True),
        Row("names of Latin-1", head(old=b"\r\n\r\n", new=b"\r\nX-\xe9: 1\r\n\r\n"), blobs=True, slow=True),
        Row("odd names", head(old=b"\r\n\r\n", new=b"\r\nX[0]: 1\r\nX@Y/Z: 2\r\n\r\n"), blobs=True),
        Row("an empty name", head(old=b"\r\n\r\n", new=b"\r\n: 1\r\n\r\n"), blobs=True, slow=True),
        Row("a value with NUL", head(old=b"\r\n\r\n", new=b"\r\nX-Odd: a\x00b\r\n\r\n"), blobs=True, slow=True),
        Row("blanks before the status", head(old=b"HTTP/1.1 2", new=b"HTTP/1.1  2"), blobs=True),
        Row("a length with zeros", head(old=b"Content-Length: ", new=b"Content-Length: 000"), blobs=True, slow=True),
        Row("a length with a sign", head(old=b"Content-Length: ", new=b"Content-Length: +"), "both", blobs=True),
        Row("a length with blanks", head(old=b"Content-Length: ", new=b"Content-Length:  \t "), blobs=True, slow=True),
        Row(
            "chunks of HTTP/1.0",
            at("manifest", "blob", framing="chunked", rewrite=lambda data: data.replace(b"HTTP/1.1", b"HTTP/1.0")),
            "both",
            blobs=True,
        ),
        Row("HTTP/1.2", head(old=b"HTTP/1.1", new=b"HTTP/1.2"), blobs=True, slow=True),
        Row("HTTP/2.0", head(old=b"HTTP/1.1", new=b"HTTP/2.0"), blobs=True, slow=True),
        Row(
            "100 continues first", head(old=b"HTTP/1.1 2", new=b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2"), blobs=True, slow=True
        ),
        Row(
            "Connection of several", at("manifest", "blob", Connection="Keep-Alive, Upgrade", Keep_Alive="timeout=5"), blobs=True
        ),
        Row("values of Latin-1", head(old=b"\r\n\r\n", new=b"\r\nX-Odd: \xe9\r\n\r\n"), blobs=True),
        Row("values with controls", head(old=b"\r\n\r\n", new=b"\r\nX-Odd: \x01\r\n\r\n"), blobs=True, slow=True),
        Row("an early hint first", head(old=b"HTTP/1.1 2", new=b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 2"), blobs=True),
        Row("a head of 80 KB", head(old=b"\r\n\r\n", new=long), blobs=True),
        Row("300 fields", head(old=b"\r\n\r\n", new=b"\r\n" + b"X-Odd: x\r\n" * 300 + b"\r\n"), slow=True),
        Row("a blank before the colon", head(old=b"Content-Type:", new=b"Content-Type :"), "both"),
        Row("a field without a colon", head(old=b"\r\n\r\n", new=b"\r\nnonsense\r\n\r\n"), "both"),
    ]


def blobs() -> list[Row]:
    """Blobs: framing, encodings, ranges, redirects."""
    kind = "blob"
    rows = [
        Row("blob chunked", at(kind, framing="chunked")),
        Row("blob ended by closing", at(kind, framing="close")),
        *(Row(f"blob Content-Encoding {name!r}", at(kind, Content_Encoding=name)) for name in ("", "Identity", "aws-chunked", "utf-8")),
        *(
            Row(f"blob redirected by {status} to {location}", redirect(kind, status, location), slow=status in {301, 303, 308})
            for status, location in [
                (301, "{target}"),
                (302, "http://{host}{target}"),
                (303, "{target}"),
                (307, "http://localhost:{port}{target}"),
                (308, "//{host}{target}"),
                (307, "{target}&odd=\xe9"),
            ]
        ),
        Row("ranges ignored", ranges(whole)),
        *(Row(f"ranges answered by {status}", refused(status), slow=status in {400, 405}) for status in (400, 403, 405, 416, 501)),
        *(
            Row(f"Content-Range {form}", spelled(form))
            for form in ("bytes {start}-{end}", "{start}-{end}/{size}", "bytes {start}-{end}/*", "Bytes {start}-{end}/{size}", "bytes={start}-{end}/{size}", "bytes  {start} - {end} / {size}")
        ),
        Row("no Content-Range", ranges(lambda _, response: dataclasses.replace(response, headers={}))),
        Row("a range shorter than asked for", ranges(short)),
    ]  # fmt: skip
    return [row._replace(blobs=True) for row in rows]


def challenges() -> list[Row]:
    """WWW-Authenticate."""
    good = [
        'BEARER Realm="{realm}",Service="registry",Scope="{scope}"',
        'Bearer  realm="{realm}",  service="registry",',
        'Bearer realm="{realm}"',
        'Bearer realm="{realm}?caf\xe9"',
        'Bearer realm="{realm}?account=x",service=""',
        'Bearer realm="{realm}" service="registry"',
        'Bearer realm="{realm}",odd',
        'Negotiate\r\nWWW-Authenticate: Bearer realm="{realm}",service="registry"',
        'Bearer realm="{realm}",service="registry", Basic realm="registry"',
    ]
    usual = [
        'bearer realm="{realm}",service="registry",scope="{scope}"',
        'Bearer realm="{realm}",service=registry',
        'Bearer realm="{realm}",service="registry",scope="{scope}",error="invalid_token"',
        'Bearer service="registry",realm="{realm}"',
        'Bearer realm="{realm}",service="registry"\r\nWWW-Authenticate: Negotiate',
    ]
    refused_by = {
        'Bearer realm = "{realm}" , service = "registry"': "both",
        'Bearer ,realm="{realm}",service="registry"': "both",
        'Negotiate, Bearer realm="{realm}",service="registry"': "both",
        'Basic realm="registry", Bearer realm="{realm}",service="registry"': "both",
        'Basic realm="registry"\r\nWWW-Authenticate: Bearer realm="{realm}",service="registry"': "skopeo",
    }
    rows = [Row(f"challenge {form}", challenge(form), tokens=True) for form in good]
    rows += [Row(f"challenge {form}", challenge(form), tokens=True, slow=True) for form in usual]
    return rows + [
        Row(f"challenge {form}", challenge(form), who, required=True, tokens=True, slow=True) for form, who in refused_by.items()
    ]


def tokens() -> list[Row]:
    """The token server's answers."""
    good = [
        '{"access_token": TOKEN}',
        '{"token": TOKEN, "access_token": null, "expires_in": null, "issued_at": null}',
        '{"token": null, "access_token": TOKEN}',
        '{"token": "", "access_token": TOKEN, "expires_in": -1}',
        '{"Token": TOKEN, "refresh_token": null, "scope": ["a"]}',
        '\n  {"token": TOKEN, "odd": "\\ud800"}\n\n',
    ]
    usual = [
        '{"token": TOKEN, "access_token": ""}',
        '{"token": TOKEN, "expires_in": 0}',
        '{"token": TOKEN, "issued_at": "2020-01-01T00:00:00Z", "expires_in": 60}',
    ]
    refused_by = {
        '{"token": TOKEN, "access_token": "other"}': "containerd",
        '{"token": TOKEN, "expires_in": "300"}': "both",
        '{"token": TOKEN, "expires_in": 300.5}': "both",
        '{"token": TOKEN, "issued_at": ""}': "both",
        '\ufeff{"token": TOKEN}': "both",
        '{"token": TOKEN} and more': "skopeo",
    }
    back = "{target}"
    rows = [
        *(Row(f"token {text}", token(text)) for text in good),
        *(Row(f"token {text}", token(text), slow=True) for text in usual),
        *(Row(f"token {text}", token(text), who) for text, who in refused_by.items()),
        Row("token wanted", lambda: honest),
        Row("token chunked", at("token", framing="chunked")),
        Row("token gzip", encoded("token", "gzip", gzip.compress)),
        Row("token of type text/html", token('{"token": TOKEN}', Content_Type="text/html")),
        Row("token with 201", at("token", status=201), "skopeo"),
        *(Row(f"realm redirected by {status}", redirect("token", status, back), slow=status in {301, 308}) for status in (301, 302, 303, 307, 308)),
        Row("realm redirected to another name", redirect("token", 302, "http://localhost:{port}{target}")),
        Row("realm redirected to TLS", redirect("token", 302, "https://{beside}{target}")),
        Row("token for a password", lambda: honest, credentials=True),
        *(Row(f"realm redirected by {status}, with a password", redirect("token", status, back), credentials=True) for status in (302, 307)),
        Row("realm redirected to TLS, with a password", redirect("token", 307, "https://{beside}{target}&guarded=1"), "skopeo", required=True, credentials=True),
    ]  # fmt: skip
    return [row._replace(tokens=True) for row in rows]


def troubles() -> list[Row]:
    """What passes. Most of it is too much for the peers."""
    return [
        *(
            Row(f"{kind} {name} once", once(kind, trouble), who, required=True, blobs=kind == "blob", tokens=kind == "token", slow=kind == "token")
            for kind in ("manifest", "blob", "token")
            for name, trouble, who in [
                ("cut", cut, "both" if kind == "token" else "skopeo"),
                ("hung up", hung_up, "?"),
                ("answered by 500", answers(500), "both"),
                ("answered by 503", answers(503), "both"),
            ]
        ),
        *(Row(f"{kind} wrong once", once(kind, wrong), "both", required=True, blobs=kind == "blob") for kind in ("manifest", "blob")),
        Row("blob cut twice", once("blob", cut, times=2), "skopeo", required=True, blobs=True),
        *(Row(f"{kind} answered by 429 once", once(kind, answers(429)), blobs=kind == "blob", slow=True) for kind in ("manifest", "blob")),
        *(
            Row(f"{kind} answered by 429 once, with Retry-After", once(kind, answers(429, Retry_After="1")))
            for kind in ("manifest", "blob")
        ),
    ]  # fmt: skip


_LARGE = re.compile(
    r"nothing odd|blob (chunked|ended|cut|redirected by 307 to http)|line feeds|odd chunks|connections closed|ranges (ignored|answered by (403|416))|a range"
    r"|Content-Range bytes .*/\*|no Content-Range"
)
_ONE_OF_SEVERAL = re.compile(
    r"manifest (Content-Encoding 'utf-8'|deflate|of type .*(UTF-8|octet-stream|upper)|Docker-Content-Digest|redirected by 30[12]|redirected by 307 to HTTP"
    r"|answered by 503|hung up)|blob (Content-Encoding 'utf-8'|redirected by 302|answered by 503)|a line behind|Content-Length twice|Accept-Ranges"
    r"|ranges answered by 501|Content-Range (Bytes|bytes=)|no reason|(values|Connection) of|an early hint|challenge .*service=\"\"|token (chunked|of type)"
    r"|realm redirected by (303|307)$|realm redirected by 302, with|token for a password|token that moves|blob that moves|token redirected"
)

PULLS = [
    row._replace(large=bool(_LARGE.match(row.name)), slow=row.slow or bool(_ONE_OF_SEVERAL.match(row.name)))
    for row in [
        Row("nothing odd", lambda: honest, blobs=True),
        *documents(),
        *heads(),
        *blobs(),
        *challenges(),
        *tokens(),
        *troubles(),
    ]
]
