"""How long a lazyfsd lives: through long orders and want of descriptors; and what an interrupted order leaves for the next one."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from lazyfs.daemon.client import Client
from lazyfs.kernel.mountinfo import mounted_at
from lazyfs.reports.orders import StatusOrder
from lazyfs.reports.status import ServiceStatus
from tests.commands import Lazyfs, run
from tests.lazyfsd import Lazyfsd, await_end, moments
from tests.lying_registry import Lie, LyingRegistry
from tests.plugin import Plugin
from tests.small_image import SmallImage
from tests.snapshots_client import SnapshotsClient
from tests.unit.registry.scripted import Answer, Reply, Request

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = ["portable", "native"]
_STEP = 0.5
LARGE = 1 << 20
"""Bytes: blobs of which a slow registry takes its time for."""


def slowly(seconds: float) -> Lie:
    """A registry that takes so long for the second half of each large range."""

    def answer(_request: Request, right: bytes) -> Answer:
        if len(right) < LARGE:
            return right
        half = len(right) // 2
        # In short steps: one that sleeps does not see that its client has gone.
        return Reply(right, "drip", drops=half, pause=_STEP, drop=int(half * _STEP / seconds) + 1)

    return answer


@contextmanager
def start(lazyfs: Lazyfs, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, on its way; it does not outlive the block."""
    command = [sys.executable, "-m", "lazyfs", *map(str, arguments)]
    with subprocess.Popen(command, env=lazyfs.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def kept(store: Path) -> int:
    """Bytes of the largest blob under way."""
    with suppress(FileNotFoundError):
        return max((path.stat().st_size for path in (store / "partial").glob("blob-*")), default=0)
    return 0


def await_kept(store: Path, size: int) -> None:
    """Until so much of a blob is kept. AssertionError where it never is."""
    for _ in moments():
        if kept(store) >= size:
            return
    raise AssertionError(f"no more than {kept(store)} bytes are kept")


@pytest.mark.parametrize("command", ["mount", pytest.param("run", marks=pytest.mark.slow)])
def test_order_that_takes_longer_than_a_daemon_waits(command: str, small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """No lazyfsd runs, and a layer takes 15 s to arrive: the one that is started stays, and is the only one."""
    root = tmp_path / "root"
    root.mkdir()
    with LyingRegistry(small.original) as registry:
        registry.lie = slowly(15)
        options = ["--plain-http", "--store", lazyfs.store]
        if command == "mount":
            lazyfs.run("mount", "--mode", "native", *options, f"{registry.image}:v1", root)
            assert not small.wrong_files(root)
            lazyfs.run("umount", root)
        else:
            output = lazyfs.run("run", *options, f"{registry.image}:v1", "/nothing", code=127)
            assert b"exits each time" not in output.stderr
    log = (lazyfs.store / "logs" / "lazyfsd.log").read_text()
    assert "keeper" not in log, "a daemon died, or was killed"


@pytest.mark.parametrize("mode", MODES)
def test_interrupted_client(mode: str, small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Ctrl-C ends the work and not only the waiting, keeps what has come, and is nothing to another client that waits for the same
    image: that one goes on from there."""
    roots = [tmp_path / name for name in ("first", "second")]
    for root in roots:
        root.mkdir()
    with LyingRegistry(small.original) as registry:
        registry.lie = slowly(600)
        options = ["--plain-http", "--store", lazyfs.store, "--mode", mode, f"{registry.image}:v1"]
        with start(lazyfs, "mount", *options, roots[0]) as first, start(lazyfs, "mount", *options, roots[1]) as second:
            await_kept(lazyfs.store, LARGE // 2)
            output = [_line(process, "waiting for layer|are fetched whole") for process in (first, second)]
            working, waiting = (first, second) if "whole" in output[0] else (second, first)
            registry.lie = None
            asked = len(registry.ranges)
            working.send_signal(signal.SIGINT)
            assert working.wait(60) == 130
            assert waiting.wait(60) == 0, waiting.stderr and waiting.stderr.read()
        root = roots[waiting is second]
        assert not small.wrong_files(root)
        starts = [int(re.findall(r"\d+", each)[0]) for each in registry.ranges[asked:]]
        assert max(starts) >= LARGE // 2, "the rest was asked for, and not all of it"
        assert mounted_at(roots[waiting is first]) is None
        assert not kept(lazyfs.store)
        lazyfs.run("umount", root)


def _line(process: subprocess.Popen[bytes], pattern: str) -> str:
    """The first line of what it says in which `pattern` is found."""
    assert process.stderr is not None
    for line in process.stderr:
        if re.search(pattern, line.decode()):
            return line.decode()
    raise AssertionError(f"it never said {pattern}")


@pytest.mark.parametrize("command", [*MODES, "run"])
def test_interrupted_order_ends_its_connections(command: str, small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Nobody fetches any more what nobody waits for; the next mount asks for the rest."""
    root = tmp_path / "root"
    root.mkdir()
    with LyingRegistry(small.original) as registry:
        registry.lie = slowly(600)
        options = ["--plain-http", "--store", lazyfs.store]
        mode = "portable" if command == "portable" else "native"
        mount = ["mount", *options, "--mode", mode, f"{registry.image}:v1", root]
        run_it = ["run", *options, f"{registry.image}:v1", "/nothing"]
        with start(lazyfs, *(run_it if command == "run" else mount)) as process:
            await_kept(lazyfs.store, LARGE // 2)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        for _ in moments():
            if not registry.server.open:
                break
        assert not registry.server.open
        size, asked = kept(lazyfs.store), len(registry.ranges)
        assert size >= LARGE // 2
        registry.lie = None
        lazyfs.run(*mount)
        assert not small.wrong_files(root)
        assert f"bytes={size}-" in " ".join(registry.ranges[asked:])
        lazyfs.run("umount", root)


def test_killed_in_the_middle_of_an_order(small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """The next daemon carries the order out, from where the dead one was; its client only waits longer."""
    root = tmp_path / "root"
    root.mkdir()
    with LyingRegistry(small.original) as registry:
        registry.lie = slowly(600)
        command = ["mount", "--plain-http", "--store", lazyfs.store, "--mode", "native", f"{registry.image}:v1", root]
        with start(lazyfs, *command) as client:
            await_kept(lazyfs.store, LARGE // 2)
            asked = len(registry.ranges)
            registry.lie = None
            *_, status = Client(lazyfs.store).call(StatusOrder(), start=False)
            assert isinstance(status, ServiceStatus)
            os.kill(status.pid, signal.SIGKILL)
            assert client.wait(60) == 0
        assert not small.wrong_files(root)
        starts = [int(re.findall(r"\d+", each)[0]) for each in registry.ranges[asked:]]
        assert max(starts) >= LARGE // 2
        lazyfs.run("umount", root)


@pytest.mark.parametrize("which", ["keeper", "process"])
def test_stopped_in_the_middle_of_an_order(which: str, small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """SIGTERM: the daemon and its keeper are gone within seconds, with the mount that there was, and what has come is kept. The order's
    client says why it ends, and starts no other daemon."""
    root = tmp_path / "root"
    root.mkdir()
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as mounted:
        lazyfsd = Lazyfsd(lazyfs.store)
        process, keeper = lazyfsd.process, lazyfsd.keeper
        target = {"keeper": keeper, "process": process}[which]
        with LyingRegistry(small.original) as registry:
            registry.lie = slowly(600)
            command = ["mount", "--plain-http", "--store", lazyfs.store, "--mode", "native", f"{registry.image}:v1", root]
            with start(lazyfs, *command) as client:
                await_kept(lazyfs.store, LARGE // 2)
                os.kill(target, signal.SIGTERM)
                _, said = client.communicate(timeout=60)
                assert client.returncode == 5 and b"lazyfsd was stopped by a signal" in said
                await_end(process)
                await_end(keeper)
        assert not Client(lazyfs.store).is_running()
        assert mounted_at(mounted) is None
        assert lazyfs.json("store", "info", "--store", lazyfs.store)["durable"]
        assert kept(lazyfs.store) >= LARGE // 2
        # For the fixture, which unmounts.
        lazyfs.run("mount", small.converted, mounted, "--store", lazyfs.store, "--mode", "native")
    assert "killed by" not in lazyfsd.log()


@contextmanager
def without_descriptors(process: int) -> Iterator[None]:
    """Another process can open no file."""
    soft, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_NOFILE, (soft, hard))


def await_log(lazyfsd: Lazyfsd | Plugin, text: str) -> None:
    """Until it has said so. AssertionError where it never does."""
    log = lazyfsd.log if isinstance(lazyfsd, Lazyfsd) else lazyfsd.logged
    for _ in moments():
        if text in log():
            return
    raise AssertionError(log())


def test_daemon_without_descriptors(small: SmallImage, lazyfs: Lazyfs) -> None:
    """It says so and goes on: whoever orders something waits, and what ended meanwhile is cleared up afterwards."""
    with lazyfs.mounted(small.converted, "--background", "off", mode="native") as root:
        lazyfsd = Lazyfsd(lazyfs.store)
        process = lazyfsd.process
        with lazyfs.mounted(small.converted, "--background", "off", mode="native") as other:
            with ExitStack() as stack:
                with without_descriptors(process):
                    client = stack.enter_context(start(lazyfs, "status", "--json", "--store", lazyfs.store))
                    await_log(lazyfsd, "cannot accept an order yet")
                    run("umount", other)  # after it was listed: it is left out of what the client prints
                said = [json.loads(line) for line in client.communicate(timeout=60)[0].splitlines()]
            # Other tests' mounts are listed as well.
            ours = [line for line in said if line["directory"] in (str(root), str(other))]
            assert [(line["directory"], line.get("error")) for line in ours] == [(str(root), None)]
            for _ in moments():
                if len(lazyfsd.status()) == 1:
                    break
            assert lazyfsd.process == process
            lazyfs.run("mount", small.converted, other, "--store", lazyfs.store, "--mode", "native")
        assert not small.wrong_files(root)
        assert lazyfsd.process == process


@pytest.mark.containerd
def test_service_without_descriptors(plugin: Plugin) -> None:
    """A snapshot is removed, and what it had cannot be: that waits for the next Cleanup, and nobody else notices."""
    process = plugin.status()["pid"]
    with SnapshotsClient(plugin.socket) as client:
        client.prepare("one")
        client.prepare("two")
        with without_descriptors(process):
            client.remove("one")
            await_log(plugin, "Too many open files")
        client.remove("two")
        client.cleanup()
        plugin.await_empty()
    assert plugin.status()["pid"] == process


@pytest.mark.parametrize(
    "command",
    ["lazyfs mount --mode native", "lazyfs mount --mode portable", "lazyfs mount", "lazyfs run", "lazyfs.daemon"],
    ids=lambda command: command[-8:].strip(),
)
def test_low_limit_of_open_files(command: str, small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """`ulimit -n 64` is an error that names the limit and what to do, not a traceback and no hang."""
    root = tmp_path / "root"
    root.mkdir()
    module, *words = command.split()
    arguments: list[str | Path] = [*words, "--store", lazyfs.store]
    if module == "lazyfs":
        arguments += [small.converted, "true" if words == ["run"] else root]
    limited = ["prlimit", "--nofile=64:64", sys.executable, "-m", module, *arguments]
    output = run(*limited, code=125 if words == ["run"] else 5, env=lazyfs.environment, timeout=60).stderr.decode()
    assert "no more than 64 files open" in output and "ulimit -n" in output and "Traceback" not in output
    assert not root.is_mount()
