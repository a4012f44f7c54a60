"""The kernel's table of mounts, and who holds one.

Reading it touches no mount: a dead one cannot hang it. What a native mount is, and whose, is read from the kernel alone: its
source begins with `lazyfs:`, and its last data layer is its store's `arrived`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

from lazyfs.kernel.mountinfo import Mount, mounts
from lazyfs.native.stack import SOURCE_PREFIX

FILESYSTEM_TYPE = "fuse.lazyfs"


class Mounted(NamedTuple):
    """One of our mounts."""

    path: Path
    device: str
    """`major:minor`, the name of its entry under /sys/class/bdi."""
    image: str
    owner: int
    """The uid that mounted it."""
    mode: Literal["portable", "native"] = "portable"
    store: Path | None = None
    """Of a native mount, where its path is short enough for the kernel's table."""


def our_mounts() -> list[Mounted]:
    """All lazyfs mounts that this process can see, the latest last."""
    return [found for found in map(_ours, mounts()) if found]


def _ours(mount: Mount) -> Mounted | None:
    if mount.kind == FILESYSTEM_TYPE:
        owner = next(iter(mount.values("user_id")), "0")
        return Mounted(mount.path, mount.device, mount.source, int(owner))
    if mount.kind == "overlay" and mount.source.startswith(SOURCE_PREFIX):
        arrived = next(reversed(mount.values("datadir+")), "")
        store = Path(arrived).parent if arrived.endswith("/arrived") else None
        return Mounted(mount.path, mount.device, mount.source.removeprefix(SOURCE_PREFIX), 0, "native", store)
    return None


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
    found = [f"the mount at {mount.path}" for mount in mounts() if mounted.path in mount.path.parents]
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _holds(process, device, mounted.path):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue  # it has ended meanwhile
            found.append(f"{name} ({process.name})")
    return found


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
