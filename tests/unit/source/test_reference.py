"""skopeo's notation, parsed and formatted."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import UsageError
from lazyfs.source.reference import parse_reference

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("python", "docker.io", "library/python", "latest", None),
        ("python:3.12", "docker.io", "library/python", "3.12", None),
        ("docker://python:3.12", "docker.io", "library/python", "3.12", None),
        ("grafana/loki", "docker.io", "grafana/loki", "latest", None),
        ("docker.io/python", "docker.io", "library/python", "latest", None),
        ("index.docker.io/a/b:c", "docker.io", "a/b", "c", None),
        ("localhost/foo", "localhost", "foo", "latest", None),
        ("localhost:5000/foo:v1", "localhost:5000", "foo", "v1", None),
        ("host:5000/foo", "host:5000", "foo", "latest", None),
        ("host/foo", "docker.io", "host/foo", "latest", None),
        ("Host/foo", "Host", "foo", "latest", None),
        ("a.b/foo", "a.b", "foo", "latest", None),
        ("[::1]:5000/foo/bar", "[::1]:5000", "foo/bar", "latest", None),
        (f"a.b/foo@{D}", "a.b", "foo", "", D),
        (f"a.b/foo:v1@{D}", "a.b", "foo", "v1", D),
        (f"python@{D}", "docker.io", "library/python", "", D),
        ("a.b/x_y/z__w/a-b--c/d.e:_T-1.2", "a.b", "x_y/z__w/a-b--c/d.e", "_T-1.2", None),
        ("docker:dind", "docker.io", "library/docker", "dind", None),
    ],
)
def test_registries(text: str, host: str, repository: str, tag: str, digest: str | None) -> None:
    """Docker Hub's short names, hosts, ports, tags and digests. The canonical form names the same image."""
    found = parse_reference(text)
    assert (found.transport, found.host, found.repository, found.tag, found.digest) == ("docker", host, repository, tag, digest)
    assert found.selector == (digest or tag)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    ("text", "directory", "tag", "digest"),
    [
        ("oci:out", "out", "", None),
        ("oci:out:v1", "out", "v1", None),
        ("oci:/tmp/a/b", "/tmp/a/b", "", None),
        ("oci:../a b/c:v1", "../a b/c", "v1", None),
        ("oci:/tmp/lab/oci:debian:v1", "/tmp/lab/oci", "debian:v1", None),
        ("oci:out:library/debian:12", "out", "library/debian:12", None),
        (f"oci:out@{D}", "out", "", D),
        (f"oci:out:v1@{D}", "out", "v1", D),
    ],
)
def test_layouts(text: str, directory: str, tag: str, digest: str | None) -> None:
    """The directory ends at the first colon, as in skopeo. A tag may contain colons and slashes."""
    found = parse_reference(text)
    assert (found.transport, found.location, found.tag, found.digest) == ("oci", directory, tag, digest)
    assert found.selector == (digest or tag)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "docker://", "oci:", "oci::tag", "oci:dir:", "oci:dir:-x", "oci:dir:a b", "a.b/", "a.b/:v1", "Python", "a.b/Foo", "a.b/foo:", "a.b/foo:.x",
        "a.b/foo:" + "t" * 129, "a.b/foo@sha256:abc", "a.b/foo@sha512:" + "a" * 128, "a.b/foo@", "a.b//foo", "a.b/foo/", "a.b/../foo", "a.b/foo\n",
        "host:99999/foo", "host:0/foo", "host:/foo", "-a.b/foo", "a.b/" + "x" * 256, "user@a.b/foo", "a.b:80:80/foo", "[::1/foo",
        "https://a.b/foo", "http://a.b/foo", "docker-archive:/x.tar", "containers-storage:foo", "dir:/x", "oci-archive:x.tar:v1", "docker-daemon:x:y",
    ],
)  # fmt: skip
def test_what_names_no_image(text: str) -> None:
    """A UsageError that quotes what was typed."""
    with pytest.raises(UsageError):
        parse_reference(text)


@given(st.text(max_size=50) | st.from_regex(r"\A(docker://|oci:)?[a-zA-Z0-9.:/@\[\]_-]{0,40}\Z"))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """What is accepted survives its canonical form."""
    with contextlib.suppress(UsageError):
        found = parse_reference(text)
        assert parse_reference(str(found)) == found
