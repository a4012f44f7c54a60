"""Several processes in one store: killed in the middle of their work, and working side by side."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.store.check import check
from lazyfs.store.store import Store
from tests.unit.store.contents import content, noise, read_all

ROOT = Path(__file__).parents[3]

# Files of one chunk and of several. Every third one shares a chunk with its neighbour.
FILES = [
    [noise(size, seed // 3) for seed, size in enumerate([3000, 70_000, 500][: 1 + number % 3], number)] for number in range(400)
]

WRITER = """
import sys, threading
from pathlib import Path
from lazyfs.store.store import Store
from tests.unit.store.contents import content
from tests.unit.store.test_processes import FILES
store = Store.open(Path(sys.argv[1]))
at_least = int(sys.argv[2])
def write(mine):
    for pieces in mine:
        made = content(*pieces)
        for index in store.missing(made, 0, len(pieces)):
            if not store.copy_local(made, index):
                store.keep(made, index, pieces[index])
        if store.statistics().kept >= at_least:
            print("enough", flush=True)
threads = [threading.Thread(target=write, args=(FILES[part::4],)) for part in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("all", flush=True)
sys.stdin.read()
"""

FETCHER = """
import os, sys
from pathlib import Path
from lazyfs.store.store import Store
from tests.unit.store.contents import content
from tests.unit.store.test_processes import FILES
sys.stdin.read(1)
with Store.open(Path(sys.argv[1])) as store:
    for pieces in FILES:
        made = content(*pieces)
        for index, piece in enumerate(pieces):
            digest = made.digests[index]
            while not store.claim(digest):
                os.sched_yield()
            if store.missing(made, 0, len(pieces)).count(index) and not store.copy_local(made, index):
                print(digest.hex(), flush=True)
                store.keep(made, index, piece)
            store.release(digest)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def check_everything(directory: Path) -> int:
    """Each chunk is right or missing, and nothing temporary remains. Returns the number of stored chunks."""
    here = 0
    with Store.open(directory) as store:
        assert len(os.listdir(directory / "tmp")) == 1
        for pieces in FILES:
            got = read_all(store, content(*pieces))
            assert all(found in (None, piece) for found, piece in zip(got, pieces, strict=True))
            here += sum(found is not None for found in got)
        report = check(store, lambda done, total: None)
        assert (report.damaged_chunks, report.index_rebuilt, report.in_use) == (0, False, False)
        assert check(store, lambda done, total: None).leftovers == 0
    return here


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_writing(directory: Path, kills: int) -> None:
    """SIGKILL, each time at another moment: no wrong byte, no damage, nothing temporary, and the work continues from there."""
    chance = random.Random(1)
    for _ in range(kills):
        with start(WRITER, directory, chance.randrange(1, 60)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
        check_everything(directory)
    with start(WRITER, directory, 10**9) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "all\n"
        process.kill()
    check_everything(directory)
    with Store.open(directory) as store:
        for pieces in FILES:
            made = content(*pieces)
            for index in store.missing(made, 0, len(pieces)):
                store.keep(made, index, pieces[index])
    assert check_everything(directory) == sum(map(len, FILES))
    assert os.listdir(directory / "partial") == []


def test_no_chunk_is_fetched_twice(directory: Path) -> None:
    """Two processes want the same files: each chunk is fetched by one of them, and all files are complete."""
    with start(FETCHER, directory) as first, start(FETCHER, directory) as second:
        outputs = []
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in (first, second):
            outputs.append(process.communicate()[0].split())
            assert process.returncode == 0
    fetched = outputs[0] + outputs[1]
    assert sorted(fetched) == sorted({digest.hex() for pieces in FILES for digest in content(*pieces).digests})
    assert os.listdir(directory / "partial") == []
    assert check_everything(directory) == sum(map(len, FILES))


@pytest.mark.parametrize("number", [1, 2])
def test_each_process_keeps_a_chunk(directory: Path, number: int) -> None:
    """The last one to commit creates the object, though it has kept only one chunk itself."""
    pieces = FILES[number]
    made = content(*pieces)
    stores = [Store.open(directory) for _ in pieces]
    for index, (store, piece) in enumerate(zip(stores, pieces, strict=True)):
        store.keep(made, index, piece)
    for store in stores:
        store.index.change()
    assert os.listdir(directory / "objects") == [made.name]
    for store in stores:
        assert read_all(store, made) == pieces
        store.close()
