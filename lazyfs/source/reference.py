"""References to images, in skopeo's notation, for two transports.

docker://HOST[:PORT]/REPO[:TAG][@DIGEST]     a registry; without `docker://`, Docker Hub's short names work as usual: python:3.12,
                                             grafana/loki
oci:DIR[:TAG][@DIGEST]                       an OCI layout; as in skopeo, DIR ends at the first colon, because a layout's tag may
                                             contain colons and slashes (oci:out:library/debian:12)
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from lazyfs.errors import UsageError, show
from lazyfs.format.digest import Digest

Transport = Literal["docker", "oci"]

DOCKER_HUB: Final = "docker.io"

_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_LAYOUT_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/+-]{0,1023}\Z")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*\Z")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?\Z")
_OTHER_TRANSPORTS = ("containers-storage", "dir", "docker-archive", "docker-daemon", "oci-archive", "ostree", "sif", "tarball")


class Reference(msgspec.Struct, frozen=True):
    """An image, or the destination of one. `str()` returns the canonical notation."""

    transport: Transport
    location: str
    """`HOST[:PORT]/REPO` of a registry; a layout's directory, as the user wrote it."""
    tag: str = ""
    """Empty if there is a digest, or if a layout holds only one image."""
    digest: Digest | None = None
    """Takes precedence over a tag."""

    @property
    def host(self) -> str:
        """HOST[:PORT] of a registry."""
        return self.location.partition("/")[0]

    @property
    def repository(self) -> str:
        """The part after the host."""
        return self.location.partition("/")[2]

    @property
    def selector(self) -> str:
        """The tag or digest for an ImageSource; `""` is a layout's only image."""
        return self.digest or self.tag

    def __str__(self) -> str:
        prefix = "docker://" if self.transport == "docker" else "oci:"
        return prefix + self.location + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """Parse `text`. Raises UsageError."""
    if not text or not text.isprintable():
        raise UsageError(f"{show(text)} names no image")
    if text.startswith("oci:"):
        return _parse_layout(text, text[4:])
    transport = text.partition(":")[0]
    if transport in _OTHER_TRANSPORTS:
        raise UsageError(
            f"the transport {show(transport)} of {show(text)} is not supported",
            hint="Use docker:// or oci:, or skopeo copy it to one",
        )
    if "://" in text and transport != "docker":
        raise UsageError(f"{show(text)} is a URL, not the name of an image", hint="Write docker://HOST/REPO:TAG")
    return _parse_registry(text, text.removeprefix("docker://"))


def _parse_layout(text: str, rest: str) -> Reference:
    rest, digest = _split_digest(rest)
    directory, colon, tag = rest.partition(":")
    if not directory:
        raise UsageError(f"{show(text)} names no directory", hint="Write oci:DIR or oci:DIR:TAG")
    if colon and not _LAYOUT_TAG.match(tag):
        raise UsageError(f"{show(tag)} in {show(text)} is not a tag")
    return Reference("oci", directory, tag, digest)


def _parse_registry(text: str, rest: str) -> Reference:
    rest, digest = _split_digest(rest)
    if "@" in rest:
        raise UsageError(f"{show(text)} does not have a sha256 digest after its @")
    host, slash, path = rest.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost" or host != host.lower()):
        host, path = DOCKER_HUB, rest
    path, colon, tag = path.partition(":")
    if host == "index.docker.io":
        host = DOCKER_HUB
    if host == DOCKER_HUB and "/" not in path:
        path = "library/" + path
    found = _HOST.match(host)
    if not found or int(found["port"] or 1) not in range(1, 65536):
        raise UsageError(f"{show(host)} in {show(text)} is not a registry host")
    if len(path) > 255 or not all(_COMPONENT.match(component) for component in path.split("/")):
        raise UsageError(
            f"{show(path)} in {show(text)} is not a repository name",
            hint="Names are lower case: letters, digits, and . _ - between them",
        )
    if colon and not _TAG.match(tag):
        raise UsageError(f"{show(tag)} in {show(text)} is not a tag")
    return Reference("docker", f"{host}/{path}", tag or ("" if digest else "latest"), digest)


def _split_digest(text: str) -> tuple[str, Digest | None]:
    found = _DIGEST.search(text)
    return (text[: found.start()], Digest(found[1])) if found else (text, None)
