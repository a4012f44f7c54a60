"""Whoever stands still holds no reader for long: a process that was stopped, and a registry that trickles. In real time, so not for every day."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from lazyfs.store.claims import Claims
from tests.commands import Lazyfs
from tests.lying_registry import LyingRegistry, silent
from tests.small_image import CHUNK_SIZE, SmallImage, large_file
from tests.unit.registry.scripted import Answer, Reply, Request

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

_PATIENCE_S = 55
"""A reader gives up after 60 s. Another process's claim holds it for 20 s, a trickle for 20 s, and the rest is for a loaded machine."""
_LOCKS = """
import sys, time
from lazyfs.format.digest import Digest, to_raw
from lazyfs.store.claims import Claims
with open(sys.argv[1], "ab"):
    pass
claims = Claims(__import__("pathlib").Path(sys.argv[1]))
assert all(claims.claim(to_raw(Digest(digest))) for digest in sys.argv[2:])
print("held", flush=True)
time.sleep(600)
"""


def test_a_stopped_process_holds_a_chunk_for_a_while(lazyfs: Lazyfs, small: SmallImage) -> None:
    """It has claimed what another one reads: the other fetches it as well, and the first goes on when it wakes up."""
    name = large_file(1)
    claimed = hashlib.sha256(small.files[name][:CHUNK_SIZE]).digest()
    read: list[bytes] = []
    with LyingRegistry.serving(small.converted) as registry:
        with lazyfs.mounted(f"{registry.image}:v1", "--background", "off") as root:
            registry.lie = silent
            reader = threading.Thread(target=lambda: read.append((root / name).read_bytes()))
            reader.start()
            while not registry.server.silences:
                time.sleep(0.05)
            pid = lazyfs.json("status", root)["pid"]
            os.kill(pid, signal.SIGSTOP)
            try:
                registry.lie = None
                assert is_claimed(lazyfs.store, claimed), "it holds nothing: the test tests nothing"
                asked = len(registry.ranges)
                done = lazyfs.run("cat", f"{registry.image}:v1", name, "--store", lazyfs.store, timeout=_PATIENCE_S)
                assert done.stdout == small.files[name]
                assert len(registry.ranges) > asked, "the stopped process had fetched it"
                assert is_claimed(lazyfs.store, claimed), "the claim was taken away from its holder"
            finally:
                os.kill(pid, signal.SIGCONT)
                registry.recover()
            reader.join(_PATIENCE_S)
            assert read == [small.files[name]]


def is_claimed(store: Path, chunk: bytes) -> bool:
    """Whether another process has claimed the chunk."""
    with closing(Claims(store / "claims")) as claims:
        return not claims.claim(chunk)


def test_a_stopped_process_holds_a_layer_for_a_while(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """It has the turn for layers that come whole; who mounts the image fetches them without it."""
    layers = [layer.name for layer in (small.original / "blobs" / "sha256").iterdir()]
    reference = f"oci:{small.original}:v1"
    lazyfs.run("ls", small.converted, "--store", lazyfs.store)  # the store exists
    command = [sys.executable, "-c", _LOCKS, str(lazyfs.store / "claims"), *(f"sha256:{layer}" for layer in layers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            holder.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with lazyfs.mounted(reference) as root:
                assert (root / "first").read_bytes() == small.files["first"]
            assert time.monotonic() - began > 15, "it was not held at all: the test is none"
        finally:
            holder.kill()


def test_a_trickle_is_left_for_another_connection(lazyfs: Lazyfs, small: SmallImage) -> None:
    """One byte a second after a prompt head: the read is right within its minute, by a second request for the rest."""
    name = large_file(1)
    with (
        LyingRegistry.serving(small.converted) as registry,
        lazyfs.mounted(f"{registry.image}:v1", "--background", "off") as root,
    ):
        trickled: list[str] = []

        def trickle(request: Request, right: bytes) -> Answer:
            if "range" not in request.headers or trickled:
                return right
            trickled.append(request.headers["range"])
            return Reply(right, "drip", drops=len(right) - 5000, pause=1.0)

        registry.lie = trickle
        began = time.monotonic()
        assert (root / name).read_bytes() == small.files[name]
        assert trickled and time.monotonic() - began < _PATIENCE_S
