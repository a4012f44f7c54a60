"""The main job on real input: build an image, serve it, convert it, mount it, run a program in it, and count what moved.

Everything lies in one temporary folder and ends with this process, in whatever way it ends.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from tests.docker_registry import Registry
from tests.images.build import Builder, BuildFailed
from tests.images.table import IMAGES

LAZYFS = Path(sys.executable).with_name("lazyfs")
PATIENCE_S = 1800


@contextmanager
def step(words: str) -> Iterator[None]:
    """Print what is done, and how long it took."""
    print(f"{words} … ", end="", flush=True)
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:.2f} s", flush=True)


def run(*command: str | Path) -> str:
    """A command's standard output; its failure ends the demo, with what it said."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        print(f"\n{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stdout}{done.stderr}", file=sys.stderr)
        sys.exit(1)
    return done.stdout


def layers_size(reference: str) -> int:
    """Bytes of all layers of an image at the registry: what a full pull moves."""
    manifest = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", reference))
    return sum(layer["size"] for layer in manifest["layers"])


def demo(folder: Path, stack: ExitStack, image: str | None, command: list[str]) -> None:
    """The whole of it; what has to be undone is on `stack`."""
    with step("Starting a registry"):
        registry = stack.enter_context(Registry(folder / "registry"))
    if image is None:
        with step("Building a Debian and Python image (kept for the next time)"):
            try:
                built = Builder().build("python")
            except BuildFailed as error:
                sys.exit(f"\n{error}")
        with step("Pushing it"):
            image = registry.push(built, "demo:original")
    lazy = f"docker://{registry.address}/demo:lazy"
    with step(f"lazyfs convert {image} {lazy}"):
        run(LAZYFS, "convert", image, lazy)

    store, root = folder / "store", folder / "root"
    root.mkdir()
    before = len(registry.requests())
    with step("lazyfs mount, nothing here yet, background off"):
        run(LAZYFS, "mount", lazy, root, "--store", store, "--background", "off")
    stack.callback(unmount, root)
    with step(f"{' '.join(command)}, its root directory in the mount"):
        output = run("chroot", root, *command)
    print(f"    {output.strip()}")
    blobs = registry.blob_requests(before)
    fetched, whole = sum(request.size for request in blobs), layers_size(lazy)
    print(
        f"    A full pull moves {whole / 1e6:.1f} MB. Fetched so far: {fetched / 1e6:.1f} MB ({fetched / whole:.1%}), in {len(blobs)} requests."
    )

    with step("lazyfs umount"):
        run(LAZYFS, "umount", root)
    with step("lazyfs mount again, and wait until the pull has finished"):
        run(LAZYFS, "mount", lazy, root, "--store", store, "--background", "wait")
    registry.stop()
    with step("The registry is stopped; the same program"):
        output = run("chroot", root, *command)
    print(f"    {output.strip()}")


def unmount(root: Path) -> None:
    """Leave no mount behind; one that is gone already is fine."""
    if root.is_mount():
        subprocess.run([LAZYFS, "umount", "--lazy", root], timeout=60, check=False)
    if root.is_mount():
        subprocess.run(["umount", "--lazy", root], check=False)


def main(arguments: list[str]) -> None:
    """Run the demo on an image of the user's, or on one built here."""

    def stop(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    image = arguments[0] if arguments else None
    command = arguments[1:] or list(IMAGES["python"].probe if image is None else ("/bin/sh", "-c", "echo hello"))
    start = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lazyfs-demo-", dir="/var/tmp")))
        demo(folder, stack, image, command)
    print(f"All of it took {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    main(sys.argv[1:])
