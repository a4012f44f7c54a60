"""Wheels of what this environment has installed: an installation in a test takes what it needs from here, and downloads nothing."""

from __future__ import annotations

import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_OF_AN_INSTALLATION: Final = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def fill(folder: Path, *wanted: str) -> Path:
    """Write into `folder` a wheel of each of `wanted` (requirements, as `lazyfs[mount]`) and of all that they require, lazyfs excepted."""
    folder.mkdir(parents=True)
    for found in _closure(wanted):
        if canonicalize_name(found.name) != "lazyfs":
            _write_wheel(found, folder)
    return folder


def _closure(wanted: tuple[str, ...]) -> list[Distribution]:
    pending, found = [Requirement(text) for text in wanted], {}
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        there = found.setdefault(name, distribution(requirement.name))
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            for text in there.requires or []:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    pending.append(further)
    return list(found.values())


def _write_wheel(found: Distribution, folder: Path) -> None:
    name = found.name.replace("-", "_")
    metadata = f"{name}-{found.version}.dist-info"
    tags = [
        line.removeprefix("Tag: ").split("-") for line in (found.read_text("WHEEL") or "").splitlines() if line[:5] == "Tag: "
    ]
    tag = "-".join(".".join(sorted(set(part))) for part in zip(*tags, strict=True))
    with zipfile.ZipFile(folder / f"{name}-{found.version}-{tag}.whl", "w") as wheel:
        names = []
        for file in found.files or []:
            own = file.parts[0].endswith(".dist-info")
            if ".." in file.parts or "__pycache__" in file.parts or (own and file.name in _OF_AN_INSTALLATION):
                continue
            names.append(str(Path(metadata, *file.parts[1:]) if own else file))
            wheel.write(str(file.locate()), names[-1])
        wheel.writestr(f"{metadata}/RECORD", "".join(f"{each},,\n" for each in [*names, f"{metadata}/RECORD"]))
