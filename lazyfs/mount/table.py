"""Lists the mounts of lazyfs, and the processes that use one.

All of it comes from the kernel's mount table and from links in /proc. No mount is touched: if its server is dead, the access would hang
or fail. A native mount is an overlay whose source begins with `lazyfs:`.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path
from typing import Final, Literal, NamedTuple

from lazyfs.kernel.mountinfo import MountInfo, mounts
from lazyfs.native.data_layers import store_of
from lazyfs.native.stack import SOURCE_PREFIX

FILESYSTEM_TYPE: Final = "fuse.lazyfs"
"""Of portable mounts. lazyfsd's gate is `fuse.lazyfs-gate`: it is not listed."""

Mode = Literal["portable", "native"]

_MAX_LINKS: Final = 40
"""Symbolic links in one path, as in the kernel (path_resolution(7))."""


class LazyfsMount(NamedTuple):
    """A mount of lazyfs."""

    path: Path
    device: str
    """`major:minor`; for a portable mount also the name of its entry in /sys/class/bdi."""
    image: str
    owner: int
    """The uid that mounted it."""
    mode: Mode = "portable"
    store: Path | None = None
    """Of a native mount: the store whose lazyfsd made it; None if the mount table does not show it."""


def our_mounts() -> list[LazyfsMount]:
    """All mounts of lazyfs in this mount namespace, the latest last."""
    return [ours for ours in map(_ours, mounts()) if ours is not None]


def find_mount(directory: Path) -> LazyfsMount | None:
    """The mount of lazyfs at `directory`, the topmost one."""
    at = {mounted.path: mounted for mounted in our_mounts()}
    # A mount point is not followed: only another path may be a symbolic link to one.
    return at.get(_absolute(directory, at)) or at.get(_resolved(Path.cwd() / directory, at))


def absolute(directory: Path) -> Path:
    """`directory` as an absolute path without symbolic links in its parents. The last component is not followed."""
    return _absolute(directory, {mounted.path for mounted in our_mounts()})


def holders(mounted: LazyfsMount) -> list[str]:
    """What keeps `mounted` busy: mounts below it, and processes as `NAME (PID)`, as far as the caller may inspect them."""
    major, minor = map(int, mounted.device.split(":"))
    device = os.makedev(major, minor)
    found = [f"the mount at {mount.path}" for mount in mounts() if mounted.path in mount.path.parents]
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _holds(process, device, mounted.path):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue  # it has exited
            found.append(f"{name} ({process.name})")
    return found


def _ours(mount: MountInfo) -> LazyfsMount | None:
    if mount.kind == FILESYSTEM_TYPE:
        owner = next(iter(mount.values("user_id")), "0")
        return LazyfsMount(mount.path, mount.device, mount.source, int(owner))
    if mount.kind == "overlay" and mount.source.startswith(SOURCE_PREFIX):
        return LazyfsMount(mount.path, mount.device, mount.source.removeprefix(SOURCE_PREFIX), 0, "native", store_of(mount))
    return None


def _absolute(directory: Path, ours: Container[Path]) -> Path:
    path = Path(os.path.abspath(directory))
    return _resolved(path.parent, ours) / path.name if path.name else path


def _resolved(path: Path, ours: Container[Path]) -> Path:
    """As realpath(3) of the absolute `path`, except that no mount of lazyfs is entered: the rest of the path is kept as it is."""
    done, ahead = Path("/"), list(reversed(path.parts[1:]))
    links = 0
    while ahead:
        name = ahead.pop()
        if name == "..":
            done = done.parent
            continue
        done /= name
        if done in ours:
            return Path(os.path.normpath(done.joinpath(*reversed(ahead))))
        try:
            target = Path(os.readlink(done))
        except OSError:
            continue  # not a link, or missing
        links += 1
        if links > _MAX_LINKS:
            continue
        done = done.parent
        if target.is_absolute():
            done, target = Path("/"), target.relative_to("/")
        ahead += reversed(target.parts)
    return done


def _holds(process: Path, device: int, path: Path) -> bool:
    links = [process / "cwd", process / "root", process / "exe"]
    try:
        links += list((process / "fd").iterdir())
    except OSError:
        pass
    for link in links:
        # readlink does not touch the mount, which may be dead.
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
