"""USER, looked up in the image's own passwd and group."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.bundle.account import Account, find_account
from lazyfs.errors import LazyfsError

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
# a comment
+::::::
broken:x:many:1::/:
huge:x:99999999999:1::/:
:x:7:7::/nameless:
www:x:33:33:www:/var/www:/bin/sh
twin:x:33:44::/twin:/bin/sh
1000:x:2000:2000::/named-by-number:/bin/sh
app:x:1000:1000:,,,::/bin/sh
"""
GROUP = """\
root:x:0:
disk:x:6:root,www
tape:x:26:root
www:x:33:
users:x:100:www,app,
short
empty:x:50:,
staff:x:50:app
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with both files."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", Account(0, 0, (0, 6, 26), "/root")),
        ("root", Account(0, 0, (0, 6, 26), "/root")),
        ("0", Account(0, 0, (0, 6, 26), "/root")),
        ("www", Account(33, 33, (33, 6, 100), "/var/www")),
        ("33", Account(33, 33, (33, 6, 100), "/var/www")),
        ("twin", Account(33, 44, (44,), "/twin")),
        ("www:users", Account(33, 100, (100,), "/var/www")),
        ("www:26", Account(33, 26, (26,), "/var/www")),
        (":users", Account(0, 100, (100,), "/root")),
        ("www:", Account(33, 33, (33, 6, 100), "/var/www")),
        ("app", Account(1000, 1000, (1000, 100, 50), "/")),
        ("1000", Account(2000, 2000, (2000,), "/named-by-number")),
        ("4000", Account(4000, 0, (0,), "/")),
        ("4000:5000", Account(4000, 5000, (5000,), "/")),
        ("7", Account(7, 0, (0,), "/")),
        ("2147483647", Account(2147483647, 0, (0,), "/")),
    ],
)
def test_forms(root: Path, user: str, account: Account) -> None:
    """Names and numbers, with and without a group, known or not: as Docker and runc read them."""
    assert find_account(root, user) == account


@pytest.mark.parametrize(
    "user", ["nobody", "www:nogroup", "2147483648", "-1", "+0", "broken", "huge", "٣", "www:99999999999", "a:b:c"]
)
def test_unknown(root: Path, user: str) -> None:
    """A name that the image does not know, and a number that no id can be, are errors, never root."""
    with pytest.raises(LazyfsError, match="the image knows no"):
        find_account(root, user)


def test_no_files_at_all(tmp_path: Path) -> None:
    """An image of one static binary has neither file: numbers do, names do not."""
    assert find_account(tmp_path, "") == Account(0, 0, (0,), "/")
    assert find_account(tmp_path, "65532:65532") == Account(65532, 65532, (65532,), "/")
    with pytest.raises(LazyfsError, match="knows no user 'root'"):
        find_account(tmp_path, "root")


def test_bytes_that_are_no_text(root: Path) -> None:
    """Whatever lies in the files, HOME and names are text without NUL."""
    (root / "etc/passwd").write_bytes(b"\xff\xfe:x:5:5::/\xff:\n\0:x:6:6::/a\0b:\r\nx:x:8:8::/home/x:\r\n")
    assert find_account(root, "5").home == "/\ufffd"
    assert find_account(root, "6").home == "/"
    assert find_account(root, "x").home == "/home/x"


def test_passwd_without_end(root: Path) -> None:
    """A file of a gigabyte is an error, not a gigabyte of memory."""
    with (root / "etc/passwd").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(LazyfsError, match="has more than"):
        find_account(root, "www")


def test_more_groups_than_the_kernel_takes(root: Path) -> None:
    """Membership in 70,000 groups is an error: runc would fail on it."""
    (root / "etc/group").write_text("".join(f"g{n}:x:{n}:www\n" for n in range(70_000)))
    with pytest.raises(LazyfsError, match="groups, more than"):
        find_account(root, "www")
