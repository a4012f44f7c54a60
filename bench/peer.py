"""The peer: stargz-snapshotter's own library as a snapshotter of containerd (peers/stargz), and images that it likes best.

Building it takes two minutes, optimising an image half a minute: both are kept in a folder, under names derived from what they were made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.place import Place
from lazyfs.kernel.mountinfo import mounts
from tests.commands import run
from tests.containerd import Containerd

NAME = "stargz"
SOURCES = Path(__file__).parent / "peers" / NAME
DEFAULT_CACHE = Path("/var/tmp/lazyfs-peers")
WATCHED_S = 10
"""For which ctr-remote watches what a command reads: its default."""
PATIENCE_S = 30


def build_peer(place: Place) -> Path:
    """The program, built unless it is there."""
    sources = [SOURCES / name for name in ("main.go", "go.mod", "go.sum")]
    program = _cache() / f"{NAME}-{_key(*(source.read_bytes() for source in sources))}"
    if not program.exists():
        place.say(f"{SOURCES}: go build")
        made = program.with_suffix(".made")
        environment = {**os.environ, "CGO_ENABLED": "0"}
        run("go", "build", "-trimpath", "-o", made, ".", cwd=SOURCES, env=environment, timeout=1200)
        made.rename(program)
    return program


def optimise(place: Place, image: str, command: Sequence[str]) -> str:
    """An image as `ctr-remote images optimize` makes it for a command, pushed to the place's registry: its reference there."""
    layout = _cache() / f"{image}-{_key(_manifest_digest(place.original(image)).encode(), *map(str.encode, command))}"
    if not layout.exists():
        place.say(f"ctr-remote images optimize, {image} for {' '.join(command)}")
        optimised = f"docker://{place.registry.address}/optimised/{image}:v1"
        with Containerd(place.new_folder() / "c") as containerd:
            source = containerd.pull(place.original(image))
            target = optimised.removeprefix("docker://")
            options = ("--oci", "--period", str(WATCHED_S), "--entrypoint", "[]", "--args", json.dumps(command))
            containerd.ctr("images", "optimize", *options, source, target, program="ctr-remote", timeout=600)
            containerd.ctr("images", "push", "--plain-http", target, program="ctr-remote")
        made = layout.with_suffix(".made")
        shutil.rmtree(made, ignore_errors=True)
        run(
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            "--preserve-digests",
            "--src-tls-verify=false",
            optimised,
            f"oci:{made}:v1",
        )
        made.rename(layout)
    return place.registry.push(f"oci:{layout}:v1", f"peer/{image}:v1")


@contextmanager
def stargz(program: Path, folder: Path, plain_http: str) -> Iterator[Path]:
    """The peer with an empty root in `folder`; its socket. Nothing that it has mounted stays."""
    folder.mkdir(parents=True)
    socket, root = folder / "socket", folder / "root"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, socket, root, plain_http], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the peer did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield socket
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for mount in [mount.path for mount in mounts() if mount.path.is_relative_to(folder)]:
            run("umount", "--lazy", mount, code=None)


def _cache() -> Path:
    folder = Path(os.environ.get("LAZYFS_PEERS", DEFAULT_CACHE))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(*parts: bytes) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _manifest_digest(reference: str) -> str:
    done = run("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", reference)
    return done.stdout.decode().strip()
