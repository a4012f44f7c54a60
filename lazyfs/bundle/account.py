"""Resolves the `USER` of an image or a command line in the image's own passwd and group files.

Source: what Docker, containerd and runc do (moby/sys/user, GetExecUser), which the tests hold: the first matching line counts, a number
needs no line, malformed lines are skipped, and a named group replaces the supplementary groups.
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
    """The ids and the home directory that a program runs with."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    """Supplementary groups, including the primary one: without it, setgroups would lift what a file's mode denies that group."""
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
    """Resolve `user` (`NAME`, `UID`, `NAME:GROUP`, `UID:GID`, empty for uid 0) in the image with the root file system `root`.

    May wait for two fetches. Raises LazyfsError for an unknown name or a number that is too large.
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
            # HOME goes into the environment, which cannot hold a NUL.
            yield _User(name, user, group, "/" if "\0" in home else home or "/")


def _groups(root: Path) -> Iterator[_Group]:
    for name, _, gid, *members in _lines(root, "/etc/group", 3):
        number = _id(gid)
        if number is not None:
            yield _Group(name, number, frozenset(members[0].split(",")) if members else frozenset())


def _lines(root: Path, name: str, fields: int) -> Iterator[list[str]]:
    """The fields of each line that has a name and at least `fields` fields."""
    for line in (read_in_root(root, name, _MAX_FILE) or b"").split(b"\n"):
        found = line.decode("utf-8", "replace").strip().split(":")
        if len(found) >= fields and found[0]:
            yield found


def _id(text: str) -> int | None:
    """`text` as a user or group id; None if it is not a number, or too large."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else -1
    return number if 0 <= number <= _MAX_ID else None
