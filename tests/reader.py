"""A process that reads files and holds every byte that it gets against the truth: `python -m tests.reader`.

For each line of its input, JSON with `root`, `truth` (the path of a pickled dict, name -> bytes) and `seed`, it reads all those
files under `root`, in an order of its own; it writes a dot and a line break a file, and then a line of JSON, see `Report`.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import sys
import time
from contextlib import suppress
from typing import NamedTuple

AWAY = frozenset({errno.EIO, errno.ENOTCONN, errno.ECONNABORTED})
"""What a read says when the process that should serve it is killed."""
STEP = 48 << 10


class Report(NamedTuple):
    """Names of files."""

    right: list[str]
    """Read to their ends."""
    wrong: list[str]
    """Showed a byte that is not theirs, or ended early."""
    away: list[str]
    """Could not be read, or not to their ends; what was read was right."""
    longest: float = 0.0
    """Seconds that one of them took at most."""


def read(path: str, expected: bytes) -> bool | None:
    """Whether a file is what is expected; None where it cannot be read to its end, but is right so far."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        return None if error.errno in AWAY else False
    try:
        offset = 0
        while data := os.read(descriptor, STEP):
            if data != expected[offset : offset + len(data)]:
                return False
            offset += len(data)
    except OSError as error:
        return None if error.errno in AWAY else False
    finally:
        with suppress(OSError):  # the kernel informs the file system of a close, too
            os.close(descriptor)
    return offset == len(expected)


def read_all(root: str, truth: dict[str, bytes], seed: object) -> Report:
    """All of `truth` under `root`, a dot to stdout for each file."""
    names = sorted(truth)
    random.Random(repr(seed)).shuffle(names)
    report = Report([], [], [])
    longest = 0.0
    for name in names:
        began = time.monotonic()
        verdict = read(os.path.join(root, name), truth[name])
        longest = max(longest, time.monotonic() - began)
        (report.away if verdict is None else report.right if verdict else report.wrong).append(name)
        os.write(1, b".\n")
    return report._replace(longest=longest)


def main() -> None:
    """Serve until the input ends."""
    truths: dict[str, dict[str, bytes]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["truth"] not in truths:
            with open(asked["truth"], "rb") as file:
                truths[asked["truth"]] = pickle.load(file)
        print(json.dumps(read_all(asked["root"], truths[asked["truth"]], asked["seed"])._asdict()), flush=True)


if __name__ == "__main__":
    main()
