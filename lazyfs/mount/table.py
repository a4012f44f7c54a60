"""The kernel's table of mounts, and who holds one.

Source: proc(5), /proc/PID/mountinfo. Reading it touches no mount: a dead one cannot hang it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

FILESYSTEM_TYPE = "fuse.lazyfs"
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mounted(NamedTuple):
    """One of our mounts."""

    path: Path
    device: str
    """`major:minor`, the name of its entry under /sys/class/bdi."""
    image: str
    owner: int
    """The uid that mounted it."""


def our_mounts() -> list[Mounted]:
    """All lazyfs mounts that this process can see, the latest last."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, image, options) = before.split(" "), after.split(" ", 2)
        if kind == FILESYSTEM_TYPE:
            owner = re.search(r"(?:^|,)user_id=(\d+)", options)
            found.append(Mounted(Path(_unescape(fields[4])), fields[2], _unescape(image), int(owner[1]) if owner else 0))
    return found


def find_mount(directory: Path) -> Mounted | None:
    """Our mount at `directory`, the uppermost one. A mount that is there is not touched: it may be dead."""
    at = {mounted.path: mounted for mounted in our_mounts()}
    # Only what is no mount may be a symbolic link to one.
    return at.get(absolute(directory)) or at.get(Path(os.path.realpath(directory)))


def absolute(directory: Path) -> Path:
    """`directory` absolute and without symbolic links in its parents; its own last step is not followed."""
    path = Path(os.path.abspath(directory))
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def holders(mounted: Mounted) -> list[str]:
    """What keeps `mounted` busy: mounts below it, and processes as `NAME (PID)`, as far as the caller may look into them."""
    major, minor = map(int, mounted.device.split(":"))
    device = os.makedev(major, minor)
    found = [f"the mount at {path}" for path in _mount_points() if mounted.path in path.parents]
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _holds(process, device, mounted.path):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue  # it has ended meanwhile
            found.append(f"{name} ({process.name})")
    return found


def _mount_points() -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    return [Path(_unescape(line.split(" ")[4])) for line in lines]


def _holds(process: Path, device: int, path: Path) -> bool:
    links = [process / "cwd", process / "root", process / "exe"]
    try:
        links += list((process / "fd").iterdir())
    except OSError:
        pass
    for link in links:
        # The link's text tells the path without asking the mount, which may be dead; stat only what may be inside.
        try:
            target = os.readlink(link)
            if target == str(path) or target.startswith(f"{path}/"):
                return True
        except OSError:
            continue
    try:
        maps = (process / "maps").read_text("utf-8", "surrogateescape")
    except OSError:
        return False
    return f" {os.major(device):02x}:{os.minor(device):02x} " in maps


def _unescape(field: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)
