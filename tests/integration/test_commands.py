"""The commands that look into an image without mounting it, as a user runs them: pipes, closed terminals, names of any bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.commands import Lazyfs
from tests.lying_registry import LyingRegistry
from tests.small_image import SmallImage, large_file

NOT_UTF8 = "caf\udce9"
"""As Python spells the bytes of a name that is not UTF-8."""


def command(lazyfs: Lazyfs, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "lazyfs", *arguments, "--store", str(lazyfs.store)]


def test_ls(lazyfs: Lazyfs, small: SmallImage) -> None:
    """A directory, sorted, in the way of `ls -l`; raw names come out as they are."""
    lines = lazyfs.run("ls", small.converted, "--store", lazyfs.store).stdout.splitlines()
    names = [line.split()[-1] for line in lines]
    assert b"caf\xe9" in b"\n".join(lines) and names == sorted(names)
    assert {b"bin", b"dev", b"etc", b"first", b"run"} <= set(names) and b"gone" not in names
    assert not any(name.startswith(b".") for name in names)
    (line,) = lazyfs.run("ls", small.converted, "bin/symlink", "--store", lazyfs.store).stdout.splitlines()
    assert line.startswith(b"-rwsr-xr-x   2      0      0          20 2023-11-14 22:13 ")
    output = lazyfs.run("ls", small.converted, "/bin", "--store", lazyfs.store).stdout
    assert b" symlink -> tool\n" in output
    (device,) = lazyfs.run("ls", small.converted, "dev", "--store", lazyfs.store).stdout.splitlines()
    assert device.startswith(b"crw-rw-rw-") and b" 1,3 " in device
    (one,) = lazyfs.run("ls", small.converted, NOT_UTF8, "--store", lazyfs.store).stdout.splitlines()
    assert one.endswith(b"caf\xe9")


def test_ls_json(lazyfs: Lazyfs, small: SmallImage) -> None:
    """One object a line."""
    lines = lazyfs.run("ls", small.converted, "bin", "--json", "--store", lazyfs.store).stdout.splitlines()
    entries = {entry["name"]: entry for entry in map(json.loads, lines)}
    assert entries.keys() == {"tool", "link", "symlink"}
    assert entries["symlink"]["link"] == "tool" and entries["tool"]["nlink"] == 2 and entries["tool"]["mode"] == 0o4755
    assert entries["tool"]["mtime_ns"] == 1_700_000_000 * 10**9


def test_cat(lazyfs: Lazyfs, small: SmallImage) -> None:
    """The bytes of a file, through links and by any name."""
    for name in ("first", large_file(6), "bin/symlink", "empty", NOT_UTF8, "/etc/../first"):
        expected = small.files[{"bin/symlink": "bin/tool", "/etc/../first": "first"}.get(name, name)]
        assert lazyfs.run("cat", small.converted, name, "--store", lazyfs.store).stdout == expected


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("cat", "IMAGE", "gone"), 4, "the image has no 'gone'"),
        (("cat", "IMAGE", "etc"), 1, "etc is a dir, not a regular file"),
        (("cat", "IMAGE", "run/pipe"), 1, "run/pipe is a fifo, not a regular file"),
        (("cat", "IMAGE", "first/below"), 4, "'first/below' leads through 'first', which is not a directory"),
        (("ls", "IMAGE", "gone\udcff"), 4, r"the image has no 'gone\\xff'"),
        (("ls", "dir:/tmp/x"), 2, "the transport 'dir'"),
        (("ls", "IMAGE", "--store", "/dev/null/x"), 5, "/dev/null/x"),
        (("ls", "IMAGE", "--platform", "x"), 2, "'x' is not a platform"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], code: int, words: str, lazyfs: Lazyfs, small: SmallImage) -> None:
    """Each kind of trouble has its exit code, and words that name what is concerned."""
    command = [argument.replace("IMAGE", small.converted) for argument in arguments]
    options = [] if "--store" in command else ["--store", str(lazyfs.store)]
    done = lazyfs.run(*command, *options, code=code)
    assert words in done.stderr.decode() and not done.stdout


def test_inspect(lazyfs: Lazyfs, small: SmallImage) -> None:
    """Of each layer what a user wants to know before mounting, in words and as JSON."""
    report = lazyfs.json("inspect", small.converted)
    assert report["lazy"] and report["image"] == f"oci:{small.layout}@{small.digest}"
    lower, upper = report["layers"]
    assert lower["format"] == "eStargz" and lower["landmark"] == upper["landmark"] == "none"
    assert lower["chunks"] > lower["entries"] > 250 and upper["entries"] == 3
    table = lazyfs.run("inspect", small.converted).stdout.decode()
    assert lower["toc_digest"] in table and upper["toc_digest"] in table and small.digest in table


@pytest.mark.parametrize("arguments", [("cat", large_file(7)), ("ls", "etc/conf.d/1"), ("ls", "/", "--json"), ("inspect",)])
def test_reader_that_has_had_enough(arguments: tuple[str, ...], lazyfs: Lazyfs, small: SmallImage) -> None:
    """A closed pipe ends the command quietly, as `head` closes one."""
    name, *rest = arguments
    words = [sys.executable, "-m", "lazyfs", name, small.converted, *rest]
    words += [] if name == "inspect" else ["--store", str(lazyfs.store)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, env=lazyfs.environment, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_output_that_cannot_be_written(lazyfs: Lazyfs, small: SmallImage) -> None:
    """A full disk behind `>` is told in words."""
    with open("/dev/full", "wb", buffering=0) as full:
        for arguments in (("cat", small.converted, large_file(7)), ("ls", small.converted)):
            words = command(lazyfs, *arguments)
            done = subprocess.run(words, env=lazyfs.environment, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
            assert done.returncode == 5 and b"No space left on device" in done.stderr and b"Traceback" not in done.stderr


def test_interrupt(lazyfs: Lazyfs, small: SmallImage) -> None:
    """Ctrl-C ends a command with 130 and without a word, whatever it is at."""
    asked: list[str] = []
    with LyingRegistry(small.layout) as registry:
        words = command(lazyfs, "cat", registry.image + ":v1", large_file(1))
        with subprocess.Popen(words, env=lazyfs.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

            def interrupt(request: object, right: bytes) -> bytes:
                asked.append(str(request))
                if len(asked) == 5:  # a chunk, behind manifest, config and two TOCs
                    process.send_signal(signal.SIGINT)
                    return b""
                return right

            registry.lie = interrupt
            output = process.communicate(timeout=60)
        assert (process.returncode, *output) == (130, b"", b"")
