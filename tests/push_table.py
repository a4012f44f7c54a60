"""Registries as they are, pushed to: see quirk_table.py, whose rows these are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tests.quirk_table import Row
from tests.quirks import broken_upload, cookies, fields_of, redirected_upload
from tests.quirky_registry import Quirk, Request, Response, honest


def taken_with(status: int) -> Callable[[], Quirk]:
    """Another status for a manifest that was pushed."""

    def quirk(request: Request, response: Response) -> Response:
        pushed = request.kind == "manifest" and request.method == "PUT"
        return dataclasses.replace(response, status=status) if pushed else response

    return lambda: quirk


def _with_body_for_head(request: Request, response: Response) -> Response:
    return dataclasses.replace(response, answers_head=True) if request.method == "HEAD" else response


PUSHES = [
    Row("nothing odd", lambda: honest),
    *(
        Row(f"location {form}", fields_of("POST", "PATCH", Location=form))
        for form in ("http://{host}{location}", "//{host}{location}", "{location}#part")
    ),
    Row("HEAD with a body", lambda: _with_body_for_head),
    Row("cookies", lambda: cookies),
    *(Row(f"begun elsewhere, by {status}", redirected_upload(status)) for status in (307, 308)),
    *(
        Row(f"OCI-Chunk-Min-Length {value}", fields_of("POST", OCI_Chunk_Min_Length=value))
        for value in ("x", "-5", "99999999999")
    ),
    Row("location with blanks", fields_of("POST", "PATCH", Location="{location}&more=a b"), "skopeo", required=True),
    Row("location without end", fields_of("PUT", Location="-")),
    *(Row(f"Range {value!r}", fields_of("PATCH", "POST", Range=value)) for value in ("-", "bytes=0-5", "0-5")),
    Row("a kept digest that is another", fields_of("PUT", Docker_Content_Digest="sha256:" + "0" * 64), "containerd"),
    *(Row(f"blob kept with {status}", fields_of("PUT", status=status), "skopeo", required=True) for status in (200, 204)),
    *(Row(f"manifest kept with {status}", taken_with(status)) for status in (200, 204)),
    Row("upload hung up once", broken_upload("PUT", Response(500, cut=-1)), "containerd", required=True),
    Row("upload answered by 500 once", broken_upload("PUT", Response(500)), "containerd", required=True),
]
