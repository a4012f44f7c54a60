"""Credentials from a file or standard input, and their removal from a process's title."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.cli.main import main
from lazyfs.errors import UsageError
from lazyfs.source.credential_options import add_creds, resolve_creds

SETTLE = """
import argparse, os, sys
from lazyfs.source.credential_options import add_creds, resolve_creds
parser = argparse.ArgumentParser()
add_creds(parser)
arguments = parser.parse_args(["--creds-stdin"])
resolve_creds(arguments)
print(arguments.creds, repr(sys.stdin.read()))
"""


def settled(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for prefix in ("", "src-", "dst-"):
        add_creds(parser, prefix)
    arguments = parser.parse_args(options)
    resolve_creds(arguments)
    return arguments


@pytest.mark.parametrize("data", [b"me:pass word:\xc3\xa9", b"me:pass word:\xc3\xa9\n", b"me:pass word:\xc3\xa9\r\n"])
def test_a_file_says_what_the_option_would(data: bytes, tmp_path: Path) -> None:
    """With or without a line end."""
    (tmp_path / "creds").write_bytes(data)
    assert settled("--creds-file", str(tmp_path / "creds")).creds == "me:pass word:é"
    both = settled("--src-creds-file", str(tmp_path / "creds"), "--dst-creds", "you:x")
    assert (both.creds, both.src_creds, both.dst_creds) == (None, "me:pass word:é", "you:x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"secret", "does not contain USER:PASSWORD"),
        (b":secret", "does not contain USER:PASSWORD"),
        (b"me:sec\0ret", "does not contain USER:PASSWORD"),
        (b"me:secret\nyou:secret\n", "has 2 lines"),
        (b"me:secret\xff", "is not UTF-8"),
        (b"me:" + b"secret" * 20_000, "has more than 65536 bytes"),
    ],
)
def test_a_file_that_is_wrong(data: bytes, message: str, tmp_path: Path) -> None:
    """The error says which file and why, but never its content."""
    (tmp_path / "creds").write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        settled("--creds-file", str(tmp_path / "creds"))
    assert str(tmp_path / "creds") in str(caught.value) and "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a directory, or without permission."""
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=message):
            settled("--creds-file", str(path))


@pytest.mark.parametrize(
    ("said", "code", "output"),
    [
        (b"me:secret\nthe rest\n", 0, "me:secret 'the rest\\n'"),
        (b"me:secret", 0, "me:secret ''"),
        (b"", 1, "standard input is empty"),
        (b"\nme:secret\n", 1, "standard input is empty"),
        (b"secret\n", 1, "does not contain USER:PASSWORD"),
        (b"me:" + bytes(70_000), 1, "more than 65536 bytes"),
    ],
)
def test_standard_input(said: bytes, code: int, output: str) -> None:
    """Its first line. The rest is left for the program that `lazyfs run` starts."""
    done = subprocess.run([sys.executable, "-c", SETTLE], input=said, capture_output=True, timeout=60, check=False)
    assert done.returncode == code and output in (done.stdout + done.stderr).decode().splitlines()[-1]


@pytest.mark.parametrize("command", ["mount", "run", "pull", "convert", "ls", "cat", "inspect", "verify"])
def test_every_command_has_all_three_and_takes_one(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two at once are a usage error, and so is a missing file."""
    arguments = {"ls": ["/"], "cat": ["/x"], "mount": [str(tmp_path)], "convert": [f"oci:{tmp_path}/out"]}.get(command, [])
    for first, second in ((["--creds", "a:b"], ["--creds-file", "x"]), (["--creds-file", "x"], ["--creds-stdin"])):
        with pytest.raises(SystemExit) as ended:
            main([command, *first, *second, "localhost/x", *arguments])
        assert ended.value.code == 2 and "not allowed with" in capsys.readouterr().err
    assert main([command, "--creds-file", str(tmp_path / "none"), "localhost/x", *arguments]) == 2
    assert "none cannot be read: No such file" in capsys.readouterr().err


def test_a_title_without_passwords() -> None:
    """All passwords are removed; user, image and options stay. Without passwords, nothing changes."""
    code = "import sys; from lazyfs.source.credential_options import hide_creds; hide_creds(sys.argv[1:]); print(open('/proc/self/cmdline').read())"
    for options, shown in (
        (["--creds", "me:secret", "image"], "--creds USER:*** image"),
        (["--src-creds=me:secret", "--dst-creds", "me:secret", "-v"], "--src-creds=USER:*** --dst-creds USER:*** -v"),
        (["--creds-file", "name"], "--creds-file name"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, timeout=60, check=True, env=os.environ)
        said = done.stdout.decode().rstrip("\n\0")
        assert said.replace("\0", " ").endswith(shown) and "secret" not in said
