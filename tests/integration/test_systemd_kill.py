"""lazyfsd killed again and again under systemd, beneath programs that read, list and start: a pause is all that they notice.

Every moment is drawn from a seed that a failure prints; LAZYFS_SEED repeats it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lazyfs.snapshots.labels import TARGET
from tests.lazy_tree import labels_of
from tests.lying_registry import LyingRegistry
from tests.machine import CONFIG, LAZYFS, SERVICE, SOCKET, Machine
from tests.readers import Readers
from tests.small_image import build_of
from tests.snapshots_client import SnapshotsClient, refused

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.systemd, pytest.mark.slow, pytest.mark.alone]

KILLS = 100
FILES = 60
"""More than are read from one kill to the next."""
READERS = 4
LATE = 0.02
LONGEST_PAUSE_S = 2.0
AT = Path("/mnt")


@pytest.fixture
def machine(session_folder: Path, wheels: Path) -> Iterator[Machine]:
    """One where it is installed and runs, and fetches nothing that nobody has asked for."""
    with Machine(session_folder / "machine-kill") as running:
        running.wheels = wheels
        running.path(CONFIG).parent.mkdir()
        running.path(CONFIG).write_text("background = false\n")
        running.install()
        yield running


class Starter:
    """Prepares and removes snapshots on a layer, and lists what there is, as starts of containers do. A call that was cut succeeds
    when it is made once more."""

    def __init__(self, machine: Machine, parent: str) -> None:
        self._socket, self._parent = machine.path(SOCKET), parent
        self.started = 0
        self.failures: list[str] = []
        self.roots: list[Path] = []
        self.killing = threading.Lock()
        """Held while somebody is killed, and while a call is made once more."""
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._enough.is_set():
            key = f"default/{self.started}/started"
            try:
                self._start(key)
            except grpc.RpcError as first:
                with self.killing:
                    try:
                        self._start(key)
                    except grpc.RpcError as again:
                        self.failures += [str(first), str(again)]
                        return
            self.started += 1

    def _start(self, key: str) -> None:
        with SnapshotsClient(self._socket) as client:
            if key not in {each.key for each in client.walk()}:
                client.prepare(key, self._parent)
            client.mounts(key)
            client.remove(key)

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()


def test_a_hundred_kills(machine: Machine, reader: Readers, seed: str, tmp_path: Path) -> None:
    """No error, every byte right, no mount made anew; and half of the kills leave somebody unanswered."""
    chance = random.Random(seed)
    image = build_of(tmp_path / "image", {f"{number % 50}/{number}": chance.randbytes(33_000) for number in range(KILLS * FILES)})
    files = list(image.files.items())
    with LyingRegistry(image.layout) as registry, SnapshotsClient(machine.path(SOCKET)) as client:
        registry.server.late = LATE
        labels = labels_of(image.layout, registry.server.host)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            client.prepare("default/1/extract-1 layer", labels=labels)
        (layer,) = [each for each in client.walk() if each.labels.get(TARGET) == labels[TARGET]]
        (bind,) = client.prepare("default/2/container", layer.key)
        mount(machine, registry)
        gate = machine.gate()
        roots = [machine.path(AT), machine.path(bind.source)]
        starter = Starter(machine, layer.key)
        waiting = []
        with reader:
            readers = [reader(roots[number % 2], dict(files[number::READERS]), number) for number in range(READERS)]
            try:
                for number in range(KILLS):
                    if number % 3:
                        machine.said("systemctl", "start", SERVICE)  # returns when it is ready
                    time.sleep(chance.uniform(0, 0.5))
                    assert any(each.is_running() for each in readers), "everything was here too early"
                    with starter.killing:
                        machine.kill()
                        waiting.append(int(Path(f"/sys/fs/fuse/connections/{gate.partition(':')[2]}/waiting").read_text()))
                longest = max(each.check().longest for each in readers)
            finally:
                starter.stop()
        assert longest < LONGEST_PAUSE_S, "on a machine that does nothing else"
        assert not starter.failures
        assert starter.started > KILLS // 2
        assert sum(count > 0 for count in waiting) >= KILLS // 2, waiting
        assert machine.gate() == gate
        client.remove("default/2/container")
        client.remove(layer.key)
        machine.run(LAZYFS, "umount", "--lazy", str(AT))


def mount(machine: Machine, registry: LyingRegistry) -> None:
    image = f"docker://{registry.server.host}/image:v1"
    machine.run(LAZYFS, "mount", "--background", "off", "--mode", "native", image, AT)
