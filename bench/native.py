"""A native mount beside overlayfs on a full pull, file by file, as a program in a container sees them.

Both lie on the same ext4 file system, both are mounted writable and new in each round, and in each round the one that begins is
another. What a pass finds in the caches is what the passes before it left: "dropped" means that all caches were dropped.

A full pull has just made all its names and inodes when its first container starts, and the kernel still has them: so its first
walk is always one with warm caches below the overlay. Of ours lazyfsd has all names looked at once the mount is there, which takes a
tenth of a second: a container that walks at once comes before that, or meets it; the walk that the bar is for begins behind it, and
the one that it is held against as long after the container's start.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.container import Container, build_reader, root_of
from bench.figure import Bar, Baseline, Figure
from bench.fuse_requests import FuseRequests, counting
from bench.place import Place
from bench.roots import another_root, drop_caches, lazy_root, pulled_root
from tests.containerd import Containerd

IMAGE = "python"
ROUNDS = 7
LARGE = 4 << 20
"""Files of more bytes have several chunks, and are served chunk by chunk until they are whole."""
WARM_PASSES = 5
PATIENCE = 30.0
"""Seconds until every file that went through the gate should be local at its next open."""
PAUSE = 0.5
WARM_UP = 1.0
"""Seconds: by then the inode warm-up of a new mount has long ended."""
OWNER = 4711

Measured = defaultdict[str, list[float]]


def measure(place: Place) -> list[Figure]:
    """Microseconds a file."""
    image, tools = place.lazy(IMAGE), build_reader(place.folder / "tools")
    ours, theirs = Measured(list), Measured(list)
    with Containerd(place.folder / "c") as containerd:
        pulled = containerd.pull(place.original(IMAGE))
        for number in range(ROUNDS):
            place.say(f"native: round {number + 1} of {ROUNDS}")
            for of_pull in (number % 2 == 0, number % 2 == 1):
                if of_pull:
                    for measure_it in (_warm_up, _measure_pulled):
                        with pulled_root(place, containerd, pulled) as bundle, Container(bundle, tools) as container:
                            measure_it(container, theirs)
                else:
                    with _missing(place, image, tools) as (container, requests, _):
                        _measure_missing(container, requests, ours)
                        with another_root(place, image) as bundle, Container(bundle, tools) as second:
                            ours["second walk"].append(second.order("walk").each)
                    with _missing(place, image, tools) as (container, requests, chunks):
                        _measure_early_chown(container, requests, chunks, ours)
    # What containers of a full pull do after a chown is the same, whenever it was.
    theirs["after early chown"] = theirs["after chown"]
    theirs["second walk"] = theirs["walk at once"] = theirs["walk"]

    def figure(name: str, words: str, bar: Bar | None = None, unit: str = "µs/file") -> Figure:
        baseline = Baseline("overlayfs, full pull", tuple(theirs[name])) if theirs[name] else None
        return Figure(words, unit, tuple(ours[name]), bar, baseline)

    near, far = Bar("<=", 1.2, "ratio"), Bar("<=", 1.5, "ratio")
    return [
        figure("walk", "walk and lstat, first", near),
        figure("walk at once", "walk and lstat, first, at once after the mount"),
        figure("second walk", "walk and lstat, first in the second container of an image"),
        figure("walk dropped", "walk and lstat, dropped"),
        figure("walk requests", "walk and lstat, FUSE", Bar("==", 0), "requests"),
        figure("missing", "open and read, missing", Bar("<=", 700)),
        figure("missing requests", "open and read, missing, up to 4 MiB, FUSE", Bar("<=", 1), "requests/file"),
        figure("missing large requests", "open and read, missing, over 4 MiB, FUSE", None, "requests/file"),
        figure("local", "from the last miss until all of it is local", None, "s"),
        figure("warm", "open and read, warm, where it missed", near),
        figure("warm large", "open and read, warm, where it missed, over 4 MiB", near),
        figure("warm requests", "open and read, warm, where it missed, FUSE", Bar("==", 0), "requests"),
        figure("dropped", "open and read, dropped", far),
        figure("chown", "chown -R"),
        figure("after chown", "open and read, warm, after chown -R", near),
        figure("early chown", "chown -R of what is missing"),
        figure("early chown chunks", "chown -R of what is missing, fetched", Bar("==", 0), "chunks"),
        figure("early local", "chown -R of what is missing, from the last miss until all of it is local", None, "s"),
        figure("after early chown", "open and read, warm, where it missed after chown -R", near),
        figure(
            "after early chown requests", "open and read, warm, where it missed after chown -R, FUSE", Bar("==", 0), "requests"
        ),
    ]


@contextmanager
def _missing(place: Place, image: str, tools: Path) -> Iterator[tuple[Container, FuseRequests, Callable[[], int]]]:
    """A container whose files are all missing, its FUSE requests, and how many chunks have been fetched by now."""
    place.new_store()
    with (
        lazy_root(place, image, "--background", "off") as bundle,
        counting(place.lazyfs.store / "gate", place.folder) as requests,
        Container(bundle, tools) as container,
    ):
        yield container, requests, lambda: int(place.lazyfs.json("status", root_of(bundle))["chunks"])


def _warm_up(container: Container, _: Measured) -> None:
    """The kernel knows what lies below the overlay, as after a pull."""
    container.order("walk")


def _measure_pulled(container: Container, found: Measured) -> None:
    """A container of a full pull: everything is here."""
    time.sleep(WARM_UP)  # nothing has to be waited for, but a processor that has slept is slower: both sides' has
    found["walk"].append(container.order("walk").each)
    container.read()
    _measure_warm(container, found)
    _measure_dropped(container, found)
    found["chown"].append(container.order("chown", OWNER).each)
    found["after chown"].append(_warm(container))


def _measure_missing(container: Container, requests: FuseRequests, found: Measured) -> None:
    """The first container of an image: nothing is here."""
    time.sleep(WARM_UP)
    requests.take()
    found["walk"].append(container.order("walk").each)
    found["walk requests"].append(requests.take().total())
    small = container.read(0, LARGE + 1)
    found["missing requests"].append(requests.take().total() / small.count)
    large = container.read(LARGE + 1)
    found["missing large requests"].append(requests.take().total() / large.count)
    found["missing"].append((small.seconds + large.seconds) * 1e6 / (small.count + large.count))
    found["local"].append(_until_local(container, requests))
    _measure_warm(container, found)
    found["warm requests"].append(requests.take().total())
    _measure_dropped(container, found)
    found["chown"].append(container.order("chown", OWNER).each)
    found["after chown"].append(_warm(container))


def _measure_early_chown(container: Container, requests: FuseRequests, chunks: Callable[[], int], found: Measured) -> None:
    """The first container of an image, whose files all change their owner before they are read."""
    found["walk at once"].append(container.order("walk").each)
    before = chunks()  # runc itself has read passwd and group
    found["early chown"].append(container.order("chown", OWNER).each)
    found["early chown chunks"].append(chunks() - before)
    container.read()
    found["early local"].append(_until_local(container, requests))
    found["after early chown"].append(_warm(container))
    found["after early chown requests"].append(requests.take().total())


def _until_local(container: Container, requests: FuseRequests) -> float:
    """Seconds until a pass over all files makes no FUSE request."""
    start = time.monotonic()
    requests.take()
    while time.monotonic() < start + PATIENCE:
        time.sleep(PAUSE)
        before = time.monotonic()
        container.read()
        if not requests.take():
            return before - start
    return PATIENCE


def _measure_warm(container: Container, found: Measured) -> None:
    found["warm"].append(_warm(container))
    found["warm large"].append(_warm(container, LARGE + 1))


def _measure_dropped(container: Container, found: Measured) -> None:
    drop_caches()
    found["walk dropped"].append(container.order("walk").each)
    drop_caches()
    found["dropped"].append(container.read().each)


def _warm(container: Container, least: int = 0) -> float:
    """A pass takes a tenth of a second, and another process is soon in its way: the median of a few."""
    return statistics.median(container.read(least).each for _ in range(WARM_PASSES))
