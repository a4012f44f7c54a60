"""Platforms by Go's names, and which of several fits a machine best."""

from __future__ import annotations

import platform as _machine
from typing import Final, NamedTuple

from lazyfs.errors import UsageError, show

# Go's names for uname's and other common names, as containerd's platforms package normalises them.
_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
_BASE_VARIANTS: Final = {"amd64": "v1", "arm64": "v8"}
"""The default variant of an architecture, which is left out."""


class Platform(NamedTuple):
    """A machine by Go's names, normalised: `linux/arm64` and `linux/arm64/v8` are equal."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


def parse_platform(text: str) -> Platform:
    """Parse `OS/ARCHITECTURE[/VARIANT]` from a command line. Raises UsageError."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(part and part.replace("_", "").replace("-", "").isalnum() for part in parts):
        raise UsageError(
            f"{show(text)} is not a platform", hint="Write it as OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT: linux/arm/v7"
        )
    return normal(*parts)


def this_platform() -> Platform:
    """The platform of this machine."""
    machine = _machine.machine().lower()
    variant = machine[3:5] if machine.startswith("armv") else ""
    return normal("linux", "arm" if variant else machine, variant)


def normal(os: str, architecture: str, variant: str = "") -> Platform:
    """The normalised platform for the names used by an image, a machine or a user."""
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    if architecture in _ARCHITECTURES:
        architecture, implied = _ARCHITECTURES[architecture]
        variant = variant or implied
    if variant.isdigit():
        variant = "v" + variant
    if architecture == "arm" and not variant:
        variant = "v7"
    if variant == _BASE_VARIANTS.get(architecture):
        variant = ""
    return Platform({"macos": "darwin"}.get(os, os), architecture, variant)


def runnable(platform: Platform) -> list[Platform]:
    """The platforms that `platform` can run, best first: a machine also runs the older variants."""
    found = [platform]
    version = platform.variant.removeprefix("v")
    oldest = {"arm": 5, "amd64": 1}.get(platform.architecture)
    if oldest is not None and version.isdigit():
        older = range(min(int(version), 9) - 1, oldest - 1, -1)
        found += [normal(platform.os, platform.architecture, f"v{number}") for number in older]
    elif platform.architecture == "arm64" and platform.variant:
        found.append(platform._replace(variant=""))
    return found
