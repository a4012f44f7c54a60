"""Who a program runs as: the `USER` of an image, or of a command line, looked up in the image's own passwd and group.

Source: what Docker, containerd and runc do alike (moby/sys/user, GetExecUser), and what the tests hold: the first line that
fits counts, a number needs no line, a line that makes no sense is passed over, a group that is named keeps the others out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from lazyfs.bundle.root import read_in_root
from lazyfs.errors import LazyfsError, show

_MAX_FILE: Final = 4 << 20
_MAX_ID: Final = (1 << 31) - 1
_MAX_GROUPS: Final = 65536
"""NGROUPS_MAX of the kernel."""


class Account(NamedTuple):
    """A user, as the kernel and the program know it."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    """Supplementary ones; the primary one among them, because a setgroups without it would drop what a file's mode denies it."""
    home: str = "/"


class _User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: frozenset[str]


def find_account(root: Path, user: str) -> Account:
    """`user` (`NAME`, `UID`, `NAME:GROUP`, `UID:GID`, nothing for uid 0) in the image whose root file system is at `root`.

    May wait for two fetches. Raises LazyfsError for a name that the image does not know, or a number too large.
    """
    name, _, group = user.partition(":")
    number = _id(name) if name else 0
    found = next((line for line in _users(root) if line.uid == number or (name and line.name == name)), None)
    if found is None and number is None:
        raise LazyfsError(
            f"the image knows no user {show(name)}", hint="Name another with --user; a number needs no line in its passwd"
        )
    uid, gid, home = (number or 0, 0, "/") if found is None else (found.uid, found.gid, found.home)
    if group:
        gid = _find_group(root, group)
        return Account(uid, gid, (gid,), home)
    member = [] if found is None else [line.gid for line in _groups(root) if found.name in line.members]
    groups = tuple(dict.fromkeys((gid, *member)))
    if len(groups) > _MAX_GROUPS:
        raise LazyfsError(f"the image's user {show(name)} is in {len(groups)} groups, more than the kernel takes")
    return Account(uid, gid, groups, home)


def _find_group(root: Path, group: str) -> int:
    number = _id(group)
    for line in _groups(root):
        if line.gid == number or line.name == group:
            return line.gid
    if number is None:
        raise LazyfsError(f"the image knows no group {show(group)}", hint="A number needs no line in its group file")
    return number


def _users(root: Path) -> Iterator[_User]:
    for name, _, uid, gid, _, home, *_ in _lines(root, "/etc/passwd", 6):
        user, group = _id(uid), _id(gid)
        if user is not None and group is not None:
            # A NUL cannot be in the environment that HOME goes into.
            yield _User(name, user, group, "/" if "\0" in home else home or "/")


def _groups(root: Path) -> Iterator[_Group]:
    for name, _, gid, *members in _lines(root, "/etc/group", 3):
        number = _id(gid)
        if number is not None:
            yield _Group(name, number, frozenset(members[0].split(",")) if members else frozenset())


def _lines(root: Path, name: str, fields: int) -> Iterator[list[str]]:
    """The fields of each line that has at least so many, and a name."""
    for line in (read_in_root(root, name, _MAX_FILE) or b"").split(b"\n"):
        found = line.decode("utf-8", "replace").strip().split(":")
        if len(found) >= fields and found[0]:
            yield found


def _id(text: str) -> int | None:
    """`text` as a user or group id; None for what is none, or one too large."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else -1
    return number if 0 <= number <= _MAX_ID else None
