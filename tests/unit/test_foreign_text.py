"""Whatever text an input holds, the error about it is one bounded line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.bundle.settings import read_settings
from lazyfs.errors import MAX_MESSAGE, LazyfsError
from lazyfs.format.digest import parse_digest
from lazyfs.format.manifest import (
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Manifest,
    candidates,
    check_layer_type,
    parse_config,
    parse_document,
)
from lazyfs.format.platform import parse_platform
from lazyfs.format.toc import parse_toc
from lazyfs.snapshots.filters import Filter
from lazyfs.source.layout import Layout
from lazyfs.source.reference import parse_reference
from lazyfs.source.selection import select_image
from tests import tars

DIGEST = "sha256:" + "a" * 64
LARGE = "\x1b[31m\n\u202e" + "x" * 1_000_000
"""A quoted megabyte would fill a terminal, and the first bytes of it turn the rest red."""

Call = Callable[[str], object]


def document(change: Callable[[str], dict[str, Any]]) -> Call:
    """A manifest with fields made of the text."""
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {"digest": DIGEST, "size": 1}, "layers": []}
    return lambda text: parse_document("", json.dumps(body | change(text)).encode())


def layer(change: Callable[[str], dict[str, Any]]) -> Call:
    body = {"mediaType": OCI_LAYER_GZIP, "digest": DIGEST, "size": 1}

    def call(text: str) -> None:
        parsed = document(lambda text: {"layers": [body | change(text)]})(text)
        assert isinstance(parsed, Manifest)
        check_layer_type(parsed.layers[0])

    return call


def toc(change: Callable[[str], dict[str, Any]]) -> Call:
    body = {"name": "a", "type": "reg", "size": 1, "chunkDigest": DIGEST}
    return lambda text: parse_toc(json.dumps({"version": 1, "entries": [body | change(text)]}).encode(), 1000, "layer 1")


def tar(make: Callable[[bytes], bytes]) -> Call:
    return lambda text: tars.read(make(text.encode("utf-8", "surrogatepass")[:60_000]) + tars.END)


CALLS: dict[str, Call] = {
    "digest": lambda text: parse_digest(text, "it"),
    "mediaType": lambda text: parse_document(
        "application/json", json.dumps({"mediaType": text, "layers": [], "config": {}}).encode()
    ),
    "mediaType, a list": document(lambda text: {"mediaType": [text]}),
    "annotation": document(lambda text: {"annotations": {text: 1}}),
    "annotation's value": document(lambda text: {"annotations": {"a": [text]}}),
    "layer's type": layer(lambda text: {"mediaType": text}),
    "layer's digest": layer(lambda text: {"digest": text}),
    "layer's size": layer(lambda text: {"size": text}),
    "layer's platform": layer(lambda text: {"platform": text}),
    "diff ID": lambda text: parse_config(json.dumps({"rootfs": {"diff_ids": [text]}}).encode(), "it"),
    "os": lambda text: parse_config(json.dumps({"rootfs": {}, "os": [text]}).encode(), "it"),
    "platform": parse_platform,
    "reference": parse_reference,
    "reference, a tag": lambda text: parse_reference(f"oci:x:{text}"),
    "reference, a name": lambda text: parse_reference(
        "docker://r.example/" + text.encode("ascii", "replace").decode().replace("\n", "")
    ),
    "TOC: name": toc(lambda text: {"name": text + "/.."}),
    "TOC: type": toc(lambda text: {"type": text}),
    "TOC: digest": toc(lambda text: {"chunkDigest": text}),
    "TOC: time": toc(lambda text: {"modtime": text}),
    "TOC: link": toc(lambda text: {"type": "hardlink", "linkName": text}),
    "TOC: attribute": toc(lambda text: {"xattrs": {text: "AA=="}}),
    "TOC: mode": toc(lambda text: {"mode": -int("9" * min(len(text), 4000))}),
    "TOC: uid": toc(lambda text: {"uid": int("9" * min(len(text), 4000))}),
    "tar: name": tar(lambda text: tars.pax((b"path", text)) + tars.file(b"x", b"hi")),
    "tar: link": tar(lambda text: tars.pax((b"linkpath", text)) + tars.header(b"x", b"1", link=b"gone")),
    "tar: time": tar(lambda text: tars.pax((b"mtime", text)) + tars.file(b"x", b"hi")),
    "program": lambda text: read_settings("{}", ["\udcff" + text]),
    "filter": lambda text: Filter([text]),
    "layout": lambda text: trio.run(Layout(Path("/nowhere")).document, text),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_megabyte_is_quoted_in_a_line(what: str) -> None:
    """By the message itself: that every message is cut to a bound (tests/unit/test_messages.py) comes after that."""
    with pytest.raises(LazyfsError) as caught:
        CALLS[what](LARGE)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < MAX_MESSAGE


def error_of(call: Callable[[], object]) -> LazyfsError | None:
    """The error that a call ends with, if it is one of ours. Text that no file could hold is not text."""
    try:
        call()
    except UnicodeEncodeError:
        return None
    except LazyfsError as error:
        return error
    return None


@given(st.sampled_from(sorted(CALLS)), st.text(min_size=1, max_size=30), st.sampled_from([1, 100]))
def test_any_text_is_quoted_in_a_line(what: str, text: str, times: int) -> None:
    """Or it is taken. No other exception than ours leaves a parser."""
    error = error_of(lambda: CALLS[what](text * times))
    assert error is None or error.message.isprintable()
    assert error is None or len(error.message) <= MAX_MESSAGE


async def test_platforms_of_an_index_are_quoted_in_a_line() -> None:
    """A thousand of them, each a kilobyte, are listed when none fits."""
    entries = [
        {"digest": DIGEST, "size": 1, "platform": {"os": "x" * 1000, "architecture": str(number)}} for number in range(1000)
    ]
    index = parse_document("", json.dumps({"manifests": entries}).encode())
    assert not isinstance(index, Manifest)
    assert not candidates(index, parse_platform("linux/amd64"))
    with pytest.raises(LazyfsError) as caught:
        await select_image(None, index, parse_platform("linux/amd64"), "it")  # type: ignore[arg-type]
    assert len(caught.value.message) <= MAX_MESSAGE
