"""lazyfs as a service under a real systemd, as systemd/install puts it there: what it mounts is everybody's, and outlives its processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from lazyfs.snapshots.labels import TARGET
from tests.earlier import COMMITS, check_out
from tests.lazy_tree import labels_of
from tests.lazyfsd import moments
from tests.lying_registry import LyingRegistry
from tests.machine import CONFIG, LAZYFS, SERVICE, SOCKET, STORE, Machine
from tests.readers import Readers
from tests.small_image import SmallImage, build_of, content
from tests.snapshots_client import SnapshotsClient, refused
from tests.systemd import ROOT

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.systemd]

SOCKETS = ("lazyfs-snapshotter.socket", "lazyfs-snapshotter-control.socket")
OWN_CONFIG = "# this machine's own\nbackground = false\n"
SHIPPED = {"lazyfs", "converter", "systemd", ".ci", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
AT = "/mnt"
FILES, SIZE = 50, 300_000
PATIENCE_S = 30
LATE = 3.0
KILLS = 8
"""More than systemd's own limit of starts allows."""


@pytest.fixture(scope="module")
def bare(session_folder: Path, wheels: Path) -> Iterator[Machine]:
    """One where lazyfs never was."""
    with Machine(session_folder / "machine") as running:
        running.wheels = wheels
        yield running


@pytest.fixture
def machine(bare: Machine) -> Iterator[Machine]:
    """One where it is installed and runs, with a configuration that its owner wrote, and nothing is mounted."""
    configure(bare)
    if bare.run("systemctl", "is-active", SERVICE, code=None).returncode:
        bare.install()
    yield bare
    bare.run(LAZYFS, "umount", "--lazy", AT, code=None)


def configure(machine: Machine) -> None:
    """Write its owner's configuration, which turns background fetches off."""
    config = machine.path(CONFIG)
    config.parent.mkdir(exist_ok=True)
    config.write_text(OWN_CONFIG)


@pytest.fixture(params=COMMITS)
def earlier(bare: Machine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine where an earlier release is installed and runs, and nothing is mounted."""
    if bare.path(LAZYFS).exists():
        bare.install("--uninstall", "--purge")
    configure(bare)
    checkout = Path("/tmp") / request.param
    check_out(request.param, bare.path(checkout))
    bare.install(checkout=checkout)
    yield bare
    bare.run(LAZYFS, "umount", "--lazy", AT, code=None)


@pytest.fixture(scope="module")
def image(session_folder: Path) -> SmallImage:
    """Its files are so large that none comes along with another."""
    return build_of(session_folder / "service", {name_of(number): content(number, SIZE) for number in range(FILES)})


def name_of(number: int) -> str:
    return f"file-{number:02}"


@pytest.fixture(scope="module")
def registry(image: SmallImage) -> Iterator[LyingRegistry]:
    with LyingRegistry(image.layout) as running:
        yield running


@pytest.fixture
def mounted(machine: Machine, registry: LyingRegistry) -> Path:
    """The image, mounted natively."""
    mount(machine, registry)
    return Path(AT)


def mount(machine: Machine, registry: LyingRegistry) -> None:
    """Nothing comes but what is read."""
    machine.run(LAZYFS, "mount", "--background", "off", "--mode", "native", f"docker://{registry.server.host}/image:v1", AT)


def test_upgraded_under_what_runs(earlier: Machine, reader: Readers, tmp_path: Path) -> None:
    """This release takes over the mounts of an earlier one while they are read; the earlier one is removed."""
    # An image of its own: the other tests need files of theirs that are still missing.
    image = build_of(tmp_path, {name_of(number): content(-number, SIZE) for number in range(1, FILES)})
    with LyingRegistry(image.layout) as registry:
        mount(earlier, registry)
        check_upgrade(earlier, image, registry, reader)


def check_upgrade(earlier: Machine, image: SmallImage, registry: LyingRegistry, reader: Readers) -> None:
    """Install this release while `image`, which is mounted, and a container of it are read."""
    with container_root(earlier, image, registry) as root, reader:
        gate, process = earlier.gate(), earlier.main_process()
        with answering_late(registry):
            readers = [reader(earlier.path(at), image.files, seed) for seed, at in enumerate((AT, root))]
            earlier.install()
            assert all(each.is_running() for each in readers)
        for each in readers:
            each.check()
        assert earlier.main_process() != process
        assert earlier.gate() == gate
        assert len([path for path in earlier.path("/opt/lazyfs").iterdir() if not path.is_symlink()]) == 1


@contextmanager
def answering_late(registry: LyingRegistry) -> Iterator[None]:
    """Slow the registry down, so that readers are still at work when an installation has ended."""
    registry.server.late = LATE
    try:
        yield
    finally:
        registry.server.late = 0


def test_installing_again_changes_nothing(machine: Machine) -> None:
    """The service runs, its owner's configuration is as it was, and so is its process after a second installation."""
    before = machine.main_process()
    assert "nothing has changed" in machine.install()
    assert machine.main_process() == before
    assert machine.path(CONFIG).read_text() == OWN_CONFIG
    for unit in (SERVICE, *SOCKETS):
        assert machine.said("systemctl", "is-active", unit) == "active"
        assert machine.said("systemctl", "is-enabled", unit) == "enabled"
    assert len([path for path in machine.path("/opt/lazyfs").iterdir() if not path.is_symlink()]) == 1


def test_snippet_is_printed(machine: Machine) -> None:
    """containerd's configuration is told, and not touched."""
    assert (ROOT / "systemd/containerd/containerd-1.toml").read_text() in machine.install()


def test_everybody_sees_what_it_mounts(machine: Machine, mounted: Path, image: SmallImage, registry: LyingRegistry) -> None:
    """Another unit reads `lazyfs mount`'s mounts and the roots of containers: the hardened service has no mount namespace of its own."""
    assert machine.read(mounted / name_of(1)) == image.files[name_of(1)]
    with container_root(machine, image, registry) as root:
        assert machine.read(root / name_of(2)) == image.files[name_of(2)]


@contextmanager
def container_root(machine: Machine, image: SmallImage, registry: LyingRegistry) -> Iterator[Path]:
    """Where the root of a container of the image's lowest layer is mounted, prepared as containerd does; removed at the end."""
    labels = labels_of(image.layout, registry.server.host)
    with SnapshotsClient(machine.path(SOCKET)) as client:
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            client.prepare("default/1/extract-1 layer", labels=labels)
        (layer,) = [each for each in client.walk() if each.labels.get(TARGET) == labels[TARGET]]
        (bind,) = client.prepare("default/2/container", layer.key)
        try:
            yield Path(bind.source)
        finally:
            client.remove("default/2/container")
            client.remove(layer.key)


def test_doctor(machine: Machine) -> None:
    """With the shipped configuration of containerd nothing is missing, as its exit code tells; without it, that is found."""
    config = machine.path("/etc/containerd/config.toml")
    config.parent.mkdir(exist_ok=True)
    config.write_text((ROOT / "systemd/containerd/containerd-1.toml").read_text())
    said = machine.said(LAZYFS, "doctor")
    assert not re.findall("^missing .*", said, re.MULTILINE)
    assert "ok      the snapshotter for containerd answers at /run/lazyfs/snapshots.sock" in said
    assert "ok      mounts of lazyfsd are visible here" in said
    config.write_text("")
    found = map(json.loads, machine.run(LAZYFS, "doctor", "--json", code=1).stdout.splitlines())
    assert [each["about"] for each in found if each["verdict"] == "missing"] == ["containerd"]


def test_killed_and_restarted_it_goes_on(machine: Machine, mounted: Path, image: SmallImage, registry: LyingRegistry) -> None:
    """More kills than systemd's start limit, and a restart: no mount is made anew, and what nobody has read yet is read."""
    gate = machine.gate()
    with container_root(machine, image, registry) as root:
        for number in range(KILLS):
            machine.kill()
            assert machine.read(mounted / name_of(10 + number)) == image.files[name_of(10 + number)]
        assert machine.show(SERVICE, "NRestarts") == str(KILLS)
        machine.run("systemctl", "restart", SERVICE)
        assert machine.read(mounted / name_of(19)) == image.files[name_of(19)]
        assert machine.read(root / name_of(3)) == image.files[name_of(3)]
    assert machine.gate() == gate


def test_calls_wait_while_it_is_away(machine: Machine, image: SmallImage, registry: LyingRegistry) -> None:
    """Stopped, the service is started by a call of containerd, and by `lazyfs mount`, which starts none of its own."""
    machine.run("systemctl", "stop", SERVICE)
    with SnapshotsClient(machine.path(SOCKET)) as client:
        assert list(client.walk()) == []
    machine.run("systemctl", "stop", SERVICE)
    mount(machine, registry)
    assert machine.said("systemctl", "is-active", SERVICE) == "active"
    assert machine.read(f"{AT}/{name_of(1)}") == image.files[name_of(1)]


def test_a_second_containerd(machine: Machine) -> None:
    """Named in the configuration alone it has a socket that outlives the process; taken out again, it has none."""
    second = "/run/lazyfs/second.sock"
    more = f'[[containerd]]\nsocket = "{SOCKET}"\n[[containerd]]\nname = "second"\nsocket = "{second}"\n'
    machine.path(CONFIG).write_text(OWN_CONFIG + more)
    machine.run("systemctl", "restart", SERVICE)
    with SnapshotsClient(machine.path(second)) as client, SnapshotsClient(machine.path(SOCKET)) as first:
        client.prepare("only here")
        machine.kill()
        with SnapshotsClient(machine.path(second)) as after:
            assert [each.key for each in after.walk()] == ["only here"]
            after.remove("only here")
        assert list(first.walk()) == []
    machine.path(CONFIG).write_text(OWN_CONFIG)
    machine.run("systemctl", "restart", SERVICE)
    with SnapshotsClient(machine.path(second)) as client, refused(grpc.StatusCode.UNAVAILABLE):
        list(client.walk())


def test_a_process_that_hangs_is_replaced(machine: Machine, mounted: Path, image: SmallImage) -> None:
    """The watchdog is fed while all is well, and ends a daemon that does not answer; who waits in a mount gets his bytes."""
    with watched_closely(machine):
        process, fed = machine.main_process(), machine.show(SERVICE, "WatchdogTimestampMonotonic")
        for _ in moments():
            if machine.show(SERVICE, "WatchdogTimestampMonotonic") != fed:
                break
        assert "roots for containerd" in machine.show(SERVICE, "StatusText")
        assert machine.main_process() == process
        os.kill(process, signal.SIGSTOP)
        assert machine.read(mounted / name_of(30)) == image.files[name_of(30)]
        assert machine.main_process() != process
    assert f"{SERVICE}: Watchdog timeout" in machine.said("journalctl", "--boot")


@contextmanager
def watched_closely(machine: Machine) -> Iterator[None]:
    """The service with a watchdog that waits for 2 s."""
    drop_in = machine.path(f"/etc/systemd/system/{SERVICE}.d")
    drop_in.mkdir()
    (drop_in / "test.conf").write_text("[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SERVICE)
    try:
        yield
    finally:
        shutil.rmtree(drop_in)
        machine.run("systemctl", "daemon-reload")


def test_what_cannot_come_up_is_given_up(machine: Machine, mounted: Path, image: SmallImage) -> None:
    """A state that a newer one wrote, under a reader: `umount --abort` ends his waiting, and with the file as it was all is well."""
    set_version(machine, 99)
    machine.kill()
    with machine.popen("cmp", mounted / name_of(35), "/dev/null") as reader:
        for _ in moments():
            if "has format 99" in machine.said("journalctl", "--boot", "--unit", SERVICE):
                break
        else:
            raise AssertionError("it has come up")
        assert f"detached {AT}" in machine.said(LAZYFS, "umount", "--abort")
        assert reader.wait(PATIENCE_S) == 2  # it could not compare
    assert AT not in machine.mounts()
    set_version(machine, 1)
    machine.run("systemctl", "restart", SERVICE)
    machine.run(LAZYFS, "status")


def set_version(machine: Machine, number: int) -> None:
    """Of the state's format. From in there: sqlite goes by real paths, which lead to this machine's own /var/lib."""
    program = f"import sqlite3; sqlite3.connect('{STORE}/state.sqlite').execute('PRAGMA user_version = {number}')"
    machine.run("/usr/bin/python3", "-c", program)


def test_a_wrong_configuration_is_not_installed(machine: Machine) -> None:
    """The service that runs is left alone, and the mistake told with its line."""
    process = machine.main_process()
    machine.path(CONFIG).write_text("stor = 1\n")
    said = machine.install(code=1)
    assert f"{CONFIG}, line 1: there is no key 'stor'" in said
    assert machine.main_process() == process


def test_a_release_that_does_not_come_up_is_taken_back(
    machine: Machine, mounted: Path, image: SmallImage, registry: LyingRegistry
) -> None:
    """The release before it is started again, and its mounts go on."""
    with container_root(machine, image, registry) as root:
        gate = machine.gate()
        (release,) = [path for path in machine.path("/opt/lazyfs").iterdir() if not path.is_symlink()]
        broken = copy_of_checkout(machine, "broken") / "lazyfs" / "daemon" / "service.py"
        broken.write_text("raise RuntimeError('broken')\n")
        said = machine.install(checkout=Path("/tmp/broken"), code=1)
        assert "The previous one serves again" in said
        assert machine.said("readlink", "/opt/lazyfs/bin") == f"{release.name}/bin"
        assert machine.read(mounted / name_of(40)) == image.files[name_of(40)]
        assert machine.read(root / name_of(41)) == image.files[name_of(41)]
        assert machine.gate() == gate


def test_uninstalled_it_leaves_nothing(machine: Machine, mounted: Path, image: SmallImage, registry: LyingRegistry) -> None:
    """Processes, mounts, units and programs are gone, under a container that runs as well; the state goes with --purge."""
    holder = machine.popen("sleep", "1000", folder=mounted)
    machine.kill()  # what a process has left behind is to go as well
    said = machine.install("--uninstall")
    assert "mounts were taken away" in said
    assert left_of(machine) == []
    assert machine.path(CONFIG).read_text() == OWN_CONFIG
    assert machine.path(f"{STORE}/index.sqlite").exists()
    holder.kill()
    holder.communicate()
    machine.install("--uninstall", "--purge")
    assert not machine.path(CONFIG).parent.exists()
    assert not machine.path(STORE).exists()


def left_of(machine: Machine) -> list[str]:
    """What of an installation is still there, state and configuration aside."""
    found = [line for line in machine.mounts().splitlines() if "lazyfs" in line]
    found += [line for line in machine.said("ps", "-eo", "args").splitlines() if "lazyfsd" in line]
    units = machine.path("/etc/systemd/system")
    found += [str(path) for path in units.rglob("lazyfs*")]
    found += [str(path) for path in machine.path("/run").glob("lazyfs*")]
    return found + [path for path in ("/opt/lazyfs",) if machine.path(path).exists()]


def copy_of_checkout(machine: Machine, name: str) -> Path:
    """Of what an installation needs, in the machine's /tmp; as seen from here."""
    target = machine.path(f"/tmp/{name}")
    shutil.copytree(
        ROOT,
        target,
        ignore=lambda folder, names: {
            each for each in names if each == "__pycache__" or (folder == str(ROOT) and each not in SHIPPED)
        },
    )
    return target
