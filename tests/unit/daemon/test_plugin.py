"""The containerds of a lazyfsd: which are served, which hear why not, and whose roots count."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.containerd.handshakes import Handshakes
from lazyfs.containerd.roots import Roots
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.daemon import plugin
from lazyfs.daemon.plugin import Plugin
from lazyfs.errors import LazyfsError, StoreFull, StoreUnusable
from lazyfs.format.digest import digest_of
from lazyfs.tasks import Supervisor
from tests.conftest import LogWatch

pytestmark = pytest.mark.usefixtures("jumping")
TOC = digest_of(b"TOC")


class ScriptedRoots:
    """The roots of one containerd, as numbers; `done` is what was asked."""

    def __init__(self, name: str, done: list[str], there: set[int]) -> None:
        self.name, self.done, self.there = name, done, there

    def mounted(self) -> set[int]:
        return set(self.there)

    def mark_dead(self) -> None:
        self.done.append(f"mark {self.name} dead")

    def unmount(self, number: int) -> None:
        self.done.append(f"unmount {self.name} {number}")
        self.there.remove(number)


class ScriptedSnapshotter:
    """The snapshotter of one containerd."""

    def __init__(self, name: str, done: list[str], roots: ScriptedRoots) -> None:
        self.name, self.done, self.roots = name, done, roots
        self.error: Exception | None = None

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.done.append(f"start {self.name}")

    def roots_on(self, layers: set[str]) -> list[Path]:
        return [Path("/roots", self.name)] if self.name in layers else []

    def pages(self, filters: object) -> list[tuple[()]]:
        return []

    def close(self) -> None:
        self.done.append(f"close {self.name}")


class Setting:
    """A plugin whose containerds are scripted."""

    def __init__(self, folder: Path, nursery: trio.Nursery, stack: AsyncExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.done: list[str] = []
        self.errors: dict[str, Exception] = {}
        """Why a containerd's snapshots cannot be opened, by its name."""
        self.tasks = Supervisor(nursery)
        layers = SimpleNamespace(documents=lambda: {TOC}, repositories=list, find=lambda _: None)
        self.plugin = Plugin(folder, cast(Any, layers), self._open, lambda each: cast(Roots, self._roots(each.name)), self.tasks)
        self.handshakes = Handshakes({})

    def _roots(self, name: str) -> ScriptedRoots:
        return ScriptedRoots(name, self.done, {len(name)})

    def _open(self, folder: Path) -> Snapshotter:
        assert folder.parent == self.folder / "containerd"
        if error := self.errors.get(folder.name):
            raise error
        return cast(Snapshotter, ScriptedSnapshotter(folder.name, self.done, self._roots(folder.name)))

    async def open(self, *names: str) -> None:
        await self.plugin.open(names, self.stack)

    def snapshotter(self, name: str) -> ScriptedSnapshotter:
        return cast(ScriptedSnapshotter, self.plugin.snapshotters[name])


class ScriptedServer:
    """lazyfs.containerd.server, without gRPC: which containerd is answered, and how."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.error: Exception | None = None

    @asynccontextmanager
    async def serve_snapshotter(self, snapshotter: ScriptedSnapshotter, path: Path, failures: object) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.answers[path.name] = "snapshots"
        yield
        del self.answers[path.name]

    @asynccontextmanager
    async def serve_refusals(self, reason: str, path: Path) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        self.answers[path.name] = reason
        yield
        del self.answers[path.name]


@asynccontextmanager
async def setting(folder: Path) -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            yield Setting(folder, nursery, stack)
        nursery.cancel_scope.cancel()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    scripted = ScriptedServer()
    monkeypatch.setattr(plugin, "import_module", lambda name: scripted)
    monkeypatch.setattr(plugin, "_RUN", tmp_path)
    return scripted


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    with closing(socket.socket(socket.AF_UNIX)) as a, closing(socket.socket(socket.AF_UNIX)) as bb:
        for name, listener in (("a", a), ("bb", bb)):
            listener.bind(str(tmp_path / name))
            listener.listen()
        yield {"a": a, "bb": bb}


async def test_all_are_started_and_closed(tmp_path: Path) -> None:
    """In order, and with roots that took over the gate as they are."""
    async with setting(tmp_path) as scene:
        await scene.open("a", "bb")
        await scene.plugin.start(same_gate=True)
        assert scene.done == ["start a", "start bb"]
        assert await scene.plugin.roots() == [1, 2] and scene.plugin.documents() == {TOC}
        assert scene.plugin.roots_on({"bb"}) == [Path("/roots/bb")] and scene.plugin.roots_on(set()) == []
    assert scene.done[2:] == ["close bb", "close a"]


async def test_a_lost_gate(tmp_path: Path, expect_log: LogWatch) -> None:
    """Roots are dead before their snapshotter starts; those of a containerd that is not served go."""
    expect_log("containerd bb is not served until lazyfsd is restarted: its database is damaged")
    async with setting(tmp_path) as scene:
        scene.errors["bb"] = StoreUnusable("its database is damaged")
        await scene.open("a", "bb")
        await scene.plugin.start(same_gate=False)
        assert scene.done == ["mark a dead", "start a", "unmount bb 2"]
        assert await scene.plugin.roots() == [1]


@pytest.mark.parametrize("error", [StoreUnusable("it is damaged"), StoreFull("no space"), MemoryError("surprise")], ids=repr)
async def test_one_cannot_be_opened(tmp_path: Path, error: Exception, expect_log: LogWatch) -> None:
    """The others are served; its roots still count, because their files come from the gate."""
    expect_log(f"containerd a is not served until lazyfsd is restarted: {error}")
    async with setting(tmp_path) as scene:
        scene.errors["a"] = error
        await scene.open("a", "bb")
        await scene.plugin.start(same_gate=True)
        assert scene.done == ["start bb"] and list(scene.plugin.snapshotters) == ["bb"]
        assert scene.plugin.unserved == {"a": str(error)}
        assert sorted(await scene.plugin.roots()) == [1, 2]
        if isinstance(error, LazyfsError):
            assert not scene.tasks.failures.counts()
        else:
            expect_log("snapshots of a containerd of a has failed")
            assert scene.tasks.failures.counts() == {"snapshots of a containerd": 1}
        statuses, _ = await scene.plugin.describe()
        assert [(each.name, each.trouble) for each in statuses] == [("bb", ""), ("a", str(error))]


async def test_one_cannot_be_started(tmp_path: Path, expect_log: LogWatch) -> None:
    """An error without a text is named by its type. Its roots and layers still count."""
    expect_log("start of a containerd of a has failed")
    expect_log("containerd a is not served until lazyfsd is restarted: RuntimeError")
    async with setting(tmp_path) as scene:
        await scene.open("a", "bb")
        scene.snapshotter("a").error = RuntimeError()
        await scene.plugin.start(same_gate=True)
        assert scene.done == ["start bb"] and scene.plugin.unserved == {"a": "RuntimeError()"}
        assert sorted(await scene.plugin.roots()) == [1, 2]
        assert scene.plugin.roots_on({"a"}) == [Path("/roots/a")]


async def test_each_is_answered(
    tmp_path: Path, server: ScriptedServer, listeners: dict[str, socket.socket], expect_log: LogWatch
) -> None:
    """A containerd that cannot be served hears why with every call. All ends with the stack, and nothing is left in /run."""
    expect_log("containerd a is not served until lazyfsd is restarted: it is damaged")
    async with setting(tmp_path) as scene:
        scene.errors["a"] = StoreUnusable("it is damaged")
        await scene.open("a", "bb")
        await scene.plugin.serve(listeners, scene.handshakes, scene.stack)
        assert server.answers == {"a": "it is damaged", "bb": "snapshots"}
        await wait_all_tasks_blocked()
        assert len(list(tmp_path.glob("lazyfsd-*"))) == 1
    assert not server.answers and not list(tmp_path.glob("lazyfsd-*"))


async def test_one_cannot_be_answered(
    tmp_path: Path, server: ScriptedServer, listeners: dict[str, socket.socket], expect_log: LogWatch
) -> None:
    """Then it hears why, too."""
    expect_log("service of a containerd of (a|bb) has failed")
    expect_log("containerd (a|bb) is not served until lazyfsd is restarted: no port")
    async with setting(tmp_path) as scene:
        await scene.open("a", "bb")
        server.error = RuntimeError("no port")
        await scene.plugin.serve(listeners, scene.handshakes, scene.stack)
        assert server.answers == {"a": "no port", "bb": "no port"} == scene.plugin.unserved
        assert sorted(await scene.plugin.roots()) == [1, 2]


async def test_none_can_be_answered(
    tmp_path: Path,
    server: ScriptedServer,
    listeners: dict[str, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    expect_log: LogWatch,
) -> None:
    """/run is full, say: callers that wait are disconnected, and the status says so."""
    expect_log("service of containerds has failed: .* cannot be made, for the sockets of grpcio")
    expect_log("containerd (a|bb) is not served until lazyfsd is restarted: .* cannot be made")
    monkeypatch.setattr(plugin, "_RUN", tmp_path / "not there")
    async with setting(tmp_path) as scene:
        caller = socket.socket(socket.AF_UNIX)
        with closing(caller), Handshakes({"a": listeners["a"].fileno()}, patience=0) as handshakes:
            caller.connect(str(tmp_path / "a"))
            caller.settimeout(60)
            assert caller.recv(1 << 10)  # the beginning of a handshake
            await scene.open("a", "bb")
            await scene.plugin.serve(listeners, handshakes, scene.stack)
            assert caller.recv(1 << 10) == b""
        assert set(scene.plugin.unserved) == {"a", "bb"} and not server.answers
