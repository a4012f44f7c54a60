"""Runs a containerd for a test: its root, state and socket are in one folder, and nothing of it outlives the test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.commands import Done, run

CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{folder}/socket"
[ttrpc]
  address = "{folder}/socket.ttrpc"
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "isolated"
"""
PLUGIN = """[proxy_plugins.{name}]
  type = "snapshot"
  address = "{socket}"
"""
EXPORTS = """  [proxy_plugins.{name}.exports]
    enable_remote_snapshot_annotations = "true"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "{name}"
    differ = "walking"
"""
"""From 2.1 on containerd itself serves `ctr images pull`, and needs configuration for it."""
CRI_PLUGINS = {
    1: '"io.containerd.grpc.v1.cri"',
    2: '"io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"',
}
CRI = {
    1: """[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_cgroup = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    disable_snapshot_annotations = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni"
    conf_dir = "{folder}/cni"
""",
    2: """[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_cgroup = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{folder}/cni"]
    conf_dir = "{folder}/cni"
""",
}
PATH = os.pathsep.join(filter(None, (os.environ.get("LAZYFS_CONTAINERD"), os.environ.get("PATH"))))
"""LAZYFS_CONTAINERD is a folder with another containerd's programs than Debian's."""
PATIENCE_S = 30
PYTHON_HELLO = ("python3", "-c", 'import time; print("hello", flush=True); time.sleep(0.1)')
"""A command that prints hello. If a container ends at once, ctr loses its output once in a hundred times."""


class Containerd:
    """`folder` needs a short path (a socket's is at most 107 bytes) on another file system than overlayfs.

    `plugins`: snapshotters, by name, with their sockets. `pause`: the sandbox image of pods; CRI is then served, with the
    first of these snapshotters.
    """

    def __init__(self, folder: Path, plugins: Mapping[str, Path] | None = None, pause: str = "") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "PATH": PATH}
        said = run(shutil.which("containerd", path=PATH) or "containerd", "--version").stdout.decode()
        self.major = 1 if re.search(r" v?1\.", said) else 2
        parts = [CONFIG.format(folder=folder, disabled="" if pause else CRI_PLUGINS[self.major])]
        if self.major > 1:
            parts[0] = parts[0].replace("version = 2", "version = 3")
        if pause:
            parts.append(CRI[self.major].format(folder=folder, pause=pause, snapshotter=next(iter(plugins or ["overlayfs"]))))
        texts = PLUGIN if self.major == 1 else PLUGIN + EXPORTS
        parts += [texts.format(name=name, socket=socket) for name, socket in (plugins or {}).items()]
        (folder / "config.toml").write_text("".join(parts))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def begin(self) -> None:
        """Start it, for the first time or after it was killed."""
        with (self.folder / "log").open("ab") as log:
            command = [shutil.which("containerd", path=PATH) or "containerd", "--config", str(self.folder / "config.toml")]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        end = time.monotonic() + PATIENCE_S
        while self.ctr("version", code=None).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self.folder / "log").read_text()[-2000:]
                self.__exit__()
                raise RuntimeError(f"containerd did not start: {said}")
            time.sleep(0.05)

    @property
    def process(self) -> int:
        """Its pid."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill it; containers keep running."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        mounts = re.findall(
            rf"^\S+ \S+ \S+ \S+ ({re.escape(str(self.folder))}/\S+)", Path("/proc/self/mountinfo").read_text(), re.MULTILINE
        )
        for path in reversed(mounts):
            run("umount", "--lazy", path, code=None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ctr(self, *arguments: str, code: int | None = 0, program: str = "ctr", timeout: float = 300) -> Done:
        """One command of ctr, or of the peer's ctr-remote."""
        found = shutil.which(program, path=PATH) or program
        return run(found, "--address", self.folder / "socket", *arguments, code=code, timeout=timeout)

    def start(self, *arguments: str, program: str = "ctr") -> subprocess.Popen[bytes]:
        """One command of ctr, or of the peer's ctr-remote, in the background; its input and output are pipes."""
        command = [shutil.which(program, path=PATH) or program, "--address", str(self.folder / "socket"), *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def pull(self, reference: str, namespace: str = "default") -> str:
        """Pull whole, with overlayfs; namespaces share nothing. Returns the reference without transport, as ctr names it."""
        name = reference.removeprefix("docker://")
        self.ctr("--namespace", namespace, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", name)
        return name

    def output(self, name: str, *command: str, snapshotter: str = "overlayfs") -> str:
        """What a command in a new container of a pulled image prints."""
        done = self.ctr("run", "--rm", "--snapshotter", snapshotter, name, f"test-{time.monotonic_ns()}", *command)
        return done.stdout.decode()

    def pull_lazily(self, reference: str, snapshotter: str) -> str:
        """Pull with the labels that make it lazy, as the peer's client does, or containerd from 2.1 on. Returns the reference as ctr names it."""
        program, arguments = self._pull(reference, snapshotter)
        self.ctr(*arguments, program=program)
        return arguments[-1]

    def start_pull(self, reference: str, snapshotter: str) -> subprocess.Popen[bytes]:
        """Start a lazy pull."""
        program, arguments = self._pull(reference, snapshotter)
        return self.start(*arguments, program=program)

    def _pull(self, reference: str, snapshotter: str) -> tuple[str, list[str]]:
        """The program and arguments for a lazy pull with this containerd."""
        pull, program = ("pull", "ctr") if self.major > 1 else ("rpull", "ctr-remote")
        name = reference.removeprefix("docker://")
        return program, ["images", pull, "--plain-http", f"--snapshotter={snapshotter}", name]

    def containers(self) -> list[str]:
        """All containers, running or not."""
        return self.ctr("containers", "ls", "--quiet").stdout.decode().split()

    def prune(self) -> None:
        """Remove every container and image, and leases of killed clients."""
        for name in self.containers():
            self.ctr("tasks", "kill", "--signal", "KILL", name, code=None)
            self.ctr("tasks", "rm", name, code=None)
            self.ctr("containers", "rm", name)
        for name in self.ctr("images", "ls", "--quiet").stdout.decode().split():
            self.ctr("images", "rm", "--sync", name)
        for lease in self.ctr("leases", "ls", "--quiet").stdout.decode().split():
            self.ctr("leases", "rm", "--sync", lease)

    def collect(self) -> None:
        """Run containerd's garbage collection now, which removes for example the snapshot of a removed container. On its own it runs now and then."""
        self.ctr("leases", "create", "--id", "collect")
        self.ctr("leases", "rm", "--sync", "collect")

    def await_snapshotter(self, snapshotter: str) -> None:
        """Wait until containerd, which has lost its connection to a stopped snapshotter, tries the socket again."""
        end = time.monotonic() + PATIENCE_S
        while self.ctr("snapshots", "--snapshotter", snapshotter, "prepare", "probe", code=None).returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"{snapshotter} stays away: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        self.ctr("snapshots", "--snapshotter", snapshotter, "rm", "probe")

    def top(self, snapshotter: str) -> str:
        """The uppermost snapshot of the only image."""
        snapshots = self.snapshots(snapshotter)
        (top,) = snapshots.keys() - {parent for parent, _ in snapshots.values()}
        return top

    @contextmanager
    def shown(self, snapshotter: str, folder: Path, parent: str = "") -> Iterator[Path]:
        """What a new snapshot on `parent` shows, or on the only image. (A view made by ctr is not referenced and may be garbage collected.)"""
        folder.mkdir()
        self.ctr("snapshots", "--snapshotter", snapshotter, "prepare", "look", parent or self.top(snapshotter))
        output = self.ctr("snapshots", "--snapshotter", snapshotter, "mounts", str(folder), "look").stdout.decode()
        run("sh", "-ec", output)
        try:
            yield folder
        finally:
            run("umount", folder)
            self.ctr("snapshots", "--snapshotter", snapshotter, "rm", "look")

    def snapshots(self, snapshotter: str) -> dict[str, tuple[str, str]]:
        """The snapshots that containerd knows: key -> (parent, kind)."""
        lines = self.ctr("snapshots", "--snapshotter", snapshotter, "list").stdout.decode().splitlines()[1:]
        return {fields[0]: (fields[1] if len(fields) == 3 else "", fields[-1]) for fields in map(str.split, lines)}
