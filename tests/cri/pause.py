"""The image that keeps a pod's namespaces: Kubernetes' own lies in a registry out of reach, and all that it does is wait."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.commands import run
from tests.docker_registry import Registry
from tests.images.layer import LayerFile
from tests.images.layout import Layout

# The first process of a PID namespace dies of no signal that it does not handle, and has to reap what is left to it.
SOURCE = """
#include <signal.h>
#include <unistd.h>

static void end(int number) { _exit(0); }

int main(void) {
    signal(SIGCHLD, SIG_IGN);
    signal(SIGINT, end);
    signal(SIGTERM, end);
    for (;;) pause();
}
"""


def push_pause(folder: Path, registry: Registry, name: str = "pause:v1") -> str:
    """Build it in `folder` and push it. How CRI's `sandbox_image` calls it: HOST:PORT/NAME, without a transport."""
    folder.mkdir(parents=True, exist_ok=True)
    source, program = folder / "pause.c", folder / "pause"
    source.write_text(SOURCE)
    run("gcc", "-static", "-Os", "-s", "-o", program, source)
    layout = Layout(folder / "layout")

    def write(layer: LayerFile) -> None:
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            member = tarfile.TarInfo("pause")
            member.size, member.mode = program.stat().st_size, 0o755
            archive.addfile(member, io.BytesIO(program.read_bytes()))
        layer.write(tar.getvalue())

    layout.add_image("v1", [(layout.add_layer(write), "pause")], {"Entrypoint": ["/pause"]})
    return registry.push(f"oci:{layout.path}:v1", name).removeprefix("docker://")
