"""Small images whose containers can do something: one static program, and files for it to read.

Built and converted in a second, where a real image with a shell takes half a minute, so that each test may have its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from lazyfs.cli.main import main
from tests.bad.oci import Oci
from tests.commands import run
from tests.mixed_image import mix
from tests.tars import info, written

# Prints the files that it is given, or why it cannot; without any it is there until somebody kills it. ctr loses, once in a
# hundred times, what is said by a process that ends at once.
SOURCE = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **names) {
    char data[65536];
    int failed = 0;
    if (count < 2) {
        write(1, "here\n", 5);
        for (;;) pause();
    }
    for (int number = 1; number < count; number++) {
        int file = open(names[number], O_RDONLY);
        ssize_t size = -1;
        while (file >= 0 && (size = read(file, data, sizeof data)) > 0) write(1, data, size);
        if (size < 0) {
            failed = 1;
            dprintf(1, "%s: %s\n", names[number], strerrorname_np(errno));
        }
        close(file);
    }
    usleep(100000);
    return failed;
}
"""
TOOL = "/bin/tool"
HELLO = (TOOL, "/etc/hello")
"""Prints a line."""


class ToolImage(NamedTuple):
    """The image, as it was made and converted, in `oci:` notation."""

    original: str
    converted: str
    folder: Path

    def mixed(self, which: str) -> str:
        """With the layers lazy that have an `l`, from the lowest up."""
        folder = self.folder / which
        if folder.exists():
            return f"oci:{folder}:v1"
        return mix(self.original, self.converted, [letter == "l" for letter in which], folder)


@cache
def tool() -> bytes:
    """The program."""
    with TemporaryDirectory() as name:
        source, program = Path(name) / "tool.c", Path(name) / "tool"
        source.write_text(SOURCE)
        run("gcc", "-static", "-Os", "-s", "-D_GNU_SOURCE", "-o", program, source)
        return program.read_bytes()


def build_tool(folder: Path, *layers: Mapping[str, bytes]) -> ToolImage:
    """In `folder`; these files are its upper layers', the lowest has the program."""
    original, converted = Oci(folder / "original"), f"oci:{folder}/converted:v1"
    lowest = written((info("bin/tool", mode=0o755), tool()), (info("etc/hello", mode=0o644), b"hello\n"))
    uppers = [written(*((info(name, mode=0o644), data) for name, data in files.items())) for files in layers]
    original.image(*map(original.plain, (lowest, *uppers)))
    assert main(["convert", f"oci:{original.path}:v1", converted]) == 0
    return ToolImage(f"oci:{original.path}:v1", converted, folder)
