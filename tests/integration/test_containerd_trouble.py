"""containerd with lazyfsd in bad times: registries that are away or silent, files that were lost, two containerds on one machine."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.containerd.resolver import DEADLINE
from tests.containerd import PYTHON_HELLO, Containerd
from tests.docker_registry import Registry
from tests.lazyfsd import moments, object_name
from tests.lying_registry import LyingRegistry, silent
from tests.plugin import NAME, PATIENCE_S, Plugin, plugin_at
from tests.sleepers import printed, sleeping
from tests.snapshots_client import SnapshotsClient
from tests.tool_image import HELLO, TOOL, ToolImage, build_tool
from tests.unit.registry.scripted import Answer, Request, reply

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.peer]

QUICK_S = 5.0
"""Less than a Prepare may wait for the network."""
FILES = {f"files/{number}": bytes([number]) * (33_000 + number) for number in range(1, 40)}
TOP = b"of the uppermost layer\n"


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> ToolImage:
    """Three layers: the program, and files of which no chunk brings its neighbour along."""
    return build_tool(tmp_path_factory.mktemp("tool"), FILES, {"top": TOP})


def printed_anew(containerd: Containerd, image: str, *command: str) -> str:
    """What a command in a new container prints, which may fail."""
    number = len(containerd.snapshots(NAME))
    name = f"{containerd.folder.parent.name}-{number}-{threading.get_ident()}"
    return containerd.ctr("run", "--rm", "--snapshotter", NAME, image, name, *command, code=None).stdout.decode()


def await_complete(plugin: Plugin) -> None:
    """Until all of the pulled layers is here."""
    for _ in moments():
        layers = [layer for containerd in plugin.status()["containerds"] for layer in containerd["lazy"]]
        if layers and not any(layer["uses"] or layer["trouble"] for layer in layers):
            return
    raise AssertionError(layers)


@pytest.mark.images
def test_a_complete_image_needs_no_registry(shared_registry: Registry, converted: Callable[[str], str]) -> None:
    """Registry gone, service stopped: a container that runs has what is here; service back: new ones start, of local state alone."""
    with plugin_at() as plugin, Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd:
        name = containerd.pull_lazily(converted("python"), NAME)
        await_complete(plugin)
        with sleeping(containerd, name, "sleep", "1000") as sleeper:
            shared_registry.stop()
            try:
                plugin.stop()
                assert printed(containerd, sleeper, *PYTHON_HELLO) == "hello\n"
                plugin.start()
                containerd.await_snapshotter(NAME)
                assert containerd.output(name, *PYTHON_HELLO, snapshotter=NAME) == "hello\n"
                assert printed(containerd, sleeper, *PYTHON_HELLO) == "hello\n"
            finally:
                shared_registry.start()
        containerd.ctr("images", "rm", "--sync", name)
        plugin.await_empty()


def test_an_incomplete_image_starts_without_its_registry(
    plugin: Plugin, containerd: Containerd, tool: ToolImage, registry: Registry
) -> None:
    """A restart answers Mounts of local state alone; what is missing is EIO, and there again when the registry is."""
    name = containerd.pull_lazily(registry.push(tool.converted, "tool:v1"), NAME)
    assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
    # By way of containerd: of what it does not know its collector makes an end.
    containerd.ctr("snapshots", "--snapshotter", NAME, "prepare", "hand", containerd.top(NAME))
    with SnapshotsClient(plugin.socket, patience=QUICK_S) as client:
        (hand,) = [info.key for info in client.walk() if info.key.endswith("/hand")]
        registry.stop()
        plugin.stop()
        plugin.start()
        plugin.wait_until_ready()
        (mount,) = client.mounts(hand)
        assert mount.type == "bind"
        containerd.await_snapshotter(NAME)
        containerd.ctr("snapshots", "--snapshotter", NAME, "rm", "hand")
        assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        assert printed_anew(containerd, name, TOOL, "/files/1") == "/files/1: EIO\n"
    (status,) = plugin.status()["repositories"]
    assert "Unreachable" in status["errors"]
    registry.start()
    assert printed_anew(containerd, name, TOOL, "/files/1").encode() == FILES["files/1"]
    containerd.ctr("images", "rm", "--sync", name)
    plugin.await_empty()


def test_a_registry_that_ignores_ranges(plugin: Plugin, containerd: Containerd, tmp_path: Path) -> None:
    """A layer whose TOC lies too far behind for a whole blob to be read up to there is left to containerd, and the status says why."""
    large = random.Random(1).randbytes(3 << 20)
    with LyingRegistry.serving(build_tool(tmp_path, {"large": large}, {"top": TOP}).converted) as registry:

        def whole(request: Request, _right: bytes) -> Answer:
            return registry._right(request._replace(headers={}))

        registry.lie = whole
        name = containerd.pull_lazily(f"{registry.image}:v1", NAME)
        (status,) = plugin.status()["containerds"]
        assert status["unpacked"] == len(status["refused"]) == 1 and len(status["lazy"]) == 2
        assert "ranges" in status["refused"][0]["reason"] or "whole blob" in status["refused"][0]["reason"]
        assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        assert printed_anew(containerd, name, TOOL, "/top").encode() == TOP
        containerd.ctr("images", "rm", "--sync", name)
        plugin.await_empty()


def test_a_registry_that_is_silent_to_lazyfsd(plugin: Plugin, containerd: Containerd, tool: ToolImage) -> None:
    """The first layer's Prepare waits for its deadline, and the others' not again; containerd unpacks them, and says why.

    Nothing else has to wait meanwhile.
    """
    with LyingRegistry.serving(tool.converted) as registry, SnapshotsClient(plugin.socket, patience=QUICK_S) as client:
        client.prepare("of another")
        registry.lie = silent_to_lazyfsd
        pull = threading.Thread(target=containerd.pull_lazily, args=(f"{registry.image}:v1", NAME))
        pull.start()
        assert any(any(map(is_lazyfsd, registry.server.requests)) for _ in moments())
        assert [info.key for info in client.walk()] == ["of another"]
        client.stat("of another")
        client.remove("of another")
        client.cleanup()
        assert pull.is_alive(), "somebody has answered"
        pull.join(PATIENCE_S)
        assert not pull.is_alive()
        registry.recover()
        (status,) = plugin.status()["containerds"]
        assert len(status["refused"]) == status["unpacked"] == 3
        first, *others = (each["reason"] for each in status["refused"])
        assert f"within {DEADLINE:.0f} s" in first
        assert all("timed out before" in reason for reason in others)
        name = registry.image.removeprefix("docker://") + ":v1"
        assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        containerd.ctr("images", "rm", "--sync", name)
        plugin.await_empty()
        containerd.pull_lazily(f"{registry.image}:v1", NAME)
        assert all(row.lazy for row in plugin.rows().values()), "it is asked again"


def is_lazyfsd(request: Request) -> bool:
    return request.headers.get("user-agent") == "lazyfs"


def without_data(request: Request, right: Answer) -> Answer:
    """Of layers only what comes last: their TOCs."""
    assert isinstance(right, bytes)
    found = re.search(rb"content-range: bytes [0-9]+-([0-9]+)/([0-9]+)", right)
    return silent(request, right) if found and is_lazyfsd(request) and int(found[1]) + 1 < int(found[2]) else right


def silent_to_lazyfsd(request: Request, right: Answer) -> Answer:
    assert isinstance(right, bytes)
    return silent(request, right) if is_lazyfsd(request) else right


def test_two_containerds(tool: ToolImage) -> None:
    """Each sees its own snapshots; what one has pulled the other fetches no more; what one removes the other keeps."""
    with (
        plugin_at("one", "two", background=False) as plugin,
        LyingRegistry.serving(tool.converted) as registry,
        Containerd(plugin.folder / "c1", {NAME: plugin.sockets["one"]}) as first,
        Containerd(plugin.folder / "c2", {NAME: plugin.sockets["two"]}) as second,
    ):
        name = first.pull_lazily(f"{registry.image}:v1", NAME)
        assert first.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        assert second.snapshots(NAME) == {} == plugin.rows("two")
        ranges = len(registry.ranges)
        second.pull_lazily(f"{registry.image}:v1", NAME)
        assert second.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        assert len(registry.ranges) == ranges
        with sleeping(second, name, TOOL) as sleeper:
            first.ctr("images", "rm", "--sync", name)
            assert first.snapshots(NAME) == {} == plugin.rows("one")
            assert printed(second, sleeper, TOOL, "/files/1", "/top") == (FILES["files/1"] + TOP).decode()
            assert second.output(name, TOOL, "/files/2", snapshotter=NAME).encode() == FILES["files/2"]
            assert [len(status["lazy"]) for status in plugin.status()["containerds"]] == [0, 3]
        second.ctr("images", "rm", "--sync", name)
        plugin.await_empty()


def test_a_pull_that_another_containerd_has_removed(tool: ToolImage) -> None:
    """What is missing goes on coming for the one that has kept the image."""
    with (
        plugin_at("one", "two") as plugin,
        LyingRegistry.serving(tool.converted) as registry,
        Containerd(plugin.folder / "c1", {NAME: plugin.sockets["one"]}) as first,
        Containerd(plugin.folder / "c2", {NAME: plugin.sockets["two"]}) as second,
    ):
        registry.lie = without_data
        names = [each.pull_lazily(f"{registry.image}:v1", NAME) for each in (first, second)]
        first.ctr("images", "rm", "--sync", names[0])
        registry.recover()
        await_complete(plugin)
        assert set(map(object_name, FILES.values())) <= set(os.listdir(plugin.store / "objects"))


@pytest.mark.parametrize(
    ("folders", "restarted"),
    [
        (("documents",), False),
        (("erofs",), True),
        (("documents", "erofs", "notes"), False),
        (("documents", "erofs", "notes"), True),
        (("objects", "arrived"), False),
        (("objects", "arrived"), True),
    ],
)
def test_files_removed_by_hand(
    folders: tuple[str, ...], restarted: bool, plugin: Plugin, containerd: Containerd, tool: ToolImage
) -> None:
    """Whatever of the store goes under a pulled image comes again with the next container, service restarted or not."""
    with LyingRegistry.serving(tool.converted) as registry:
        name = containerd.pull_lazily(f"{registry.image}:v1", NAME)
        assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        for _ in moments():
            if not plugin.status()["containerds"][0]["roots"]:
                break
        if restarted:
            plugin.stop()
        for folder in folders:
            for path in (plugin.store / folder).iterdir():
                path.unlink()
        if restarted:
            plugin.start()
            containerd.await_snapshotter(NAME)
        assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        assert containerd.output(name, TOOL, "/files/5", snapshotter=NAME).encode() == FILES["files/5"]
        containerd.ctr("images", "rm", "--sync", name)
        plugin.await_empty()


class Private:
    """A lie: nobody gets anything without the password."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self._basic = "Basic " + base64.b64encode(f"user:{self.secret}".encode()).decode()

    def __call__(self, request: Request, right: Answer) -> Answer:
        if request.headers.get("authorization") == self._basic:
            return right
        return reply(401, www_authenticate='Basic realm="here"')

    def config(self, host: str) -> str:
        """What docker login writes."""
        return json.dumps({"auths": {host: {"auth": self._basic.removeprefix("Basic ")}}})


def test_a_private_registry(plugin: Plugin, containerd: Containerd, tool: ToolImage) -> None:
    """Without root's docker config lazyfsd has no password: containerd pulls, with its own; with it layers are lazy. No log tells it."""
    private = Private()
    with LyingRegistry.serving(tool.converted) as registry:
        registry.lie = private
        name = f"{registry.image.removeprefix('docker://')}:v1"
        pull = ("images", "rpull", "--plain-http", f"--snapshotter={NAME}", "--user", f"user:{private.secret}", name)
        containerd.ctr(*pull, program="ctr-remote")
        (status,) = plugin.status()["containerds"]
        assert status["lazy"] == [] and len(status["refused"]) == 3
        assert all("wants credentials, and there are none" in each["reason"] for each in status["refused"])
        assert containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        containerd.ctr("images", "rm", "--sync", name)
        plugin.await_empty()

        (plugin.home / ".docker").mkdir()
        (plugin.home / ".docker" / "config.json").write_text(private.config(registry.server.host))
        containerd.ctr(*pull, program="ctr-remote")
        assert all(row.lazy for row in plugin.rows().values())
        plugin.stop()
        plugin.start()
        containerd.await_snapshotter(NAME)
        assert containerd.output(name, TOOL, "/files/7", snapshotter=NAME).encode() == FILES["files/7"]
        containerd.ctr("images", "rm", "--sync", name)
        plugin.await_empty()
    said = plugin.logged() + plugin.log.read_text() + json.dumps(plugin.status())
    assert private.secret not in said and private.config("") not in said
    assert "wants credentials" in said


@pytest.mark.images
def test_lazy_layers_are_counted_as_they_are_on_disk(
    shared_registry: Registry, converted: Callable[[str], str], tool: ToolImage, tmp_path: Path
) -> None:
    """The sum over containerd's lazy layers is what their objects take, within 1 %; those that images share are counted once."""
    other = build_tool(tmp_path, {name: data for name, data in FILES.items() if len(data) % 2}, {"other": b"of its own"})
    pushed = [shared_registry.push(image.converted, f"counted:{n}") for n, image in enumerate((tool, other))]
    with plugin_at() as plugin, Containerd(plugin.folder / "c", {NAME: plugin.socket}) as containerd:
        for reference in (converted("python"), *pushed):
            containerd.pull_lazily(reference, NAME)
            await_complete(plugin)
            taken = sum(entry.stat().st_blocks * 512 for entry in os.scandir(plugin.store / "objects"))
            # What waits for the store's next commit is counted after it.
            assert any(abs(used(containerd) - taken) < taken / 100 for _ in moments()), (used(containerd), taken)


def used(containerd: Containerd) -> int:
    """Bytes that all snapshots take, as containerd knows it."""
    lines = containerd.ctr("snapshots", "--snapshotter", NAME, "usage", "-b").stdout.decode().splitlines()[1:]
    return sum(int(line.split()[-2]) for line in lines)
