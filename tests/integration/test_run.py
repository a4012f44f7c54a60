"""`lazyfs run`, from the command line to the end of the container, and what it leaves: nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from converter.prioritize import read_list
from lazyfs.daemon.containers import sweep
from lazyfs.kernel.mountinfo import mounted_at
from tests.commands import Done, Lazyfs, run
from tests.lazyfsd import await_end, moments, remains, traces
from tests.terminal import PATIENCE_S, terminal

pytestmark = [pytest.mark.images, pytest.mark.registry, pytest.mark.containerd, pytest.mark.fuse]


@pytest.fixture(scope="module")
def lazyfs(session_folder: Path) -> Iterator[Lazyfs]:
    """One store and one lazyfsd for all, as on a machine that runs many containers; it leaves nothing either.

    The store is reached through a symbolic link, as on a machine whose large disk is elsewhere.
    """
    (session_folder / "run-on-a-disk").mkdir()
    (session_folder / "run").symlink_to("run-on-a-disk")
    command = Lazyfs(session_folder / "run")
    yield command
    for trace in traces(command.store):
        if (process := re.match(r"process (\d+):.*--no-keeper", trace)) is not None:
            os.kill(int(process[1]), signal.SIGTERM)
            await_end(int(process[1]))
    assert remains(command.store) == []


@pytest.fixture(scope="module")
def image(converted: Callable[[str], str]) -> str:
    """Debian, converted, in a registry."""
    return converted("debian")


@pytest.fixture(autouse=True)
def _nothing_left(lazyfs: Lazyfs) -> Iterator[None]:
    yield
    assert left_of(lazyfs) == []


def left_of(lazyfs: Lazyfs) -> list[str]:
    """What containers have left behind."""
    folder = (lazyfs.store / "containers").resolve()
    mounts = re.findall(
        rf"^\S+ \S+ \S+ \S+ ({re.escape(str(folder))}\S*)", Path("/proc/self/mountinfo").read_text(), re.MULTILINE
    )
    containers = [path.parent.name for path in Path("/run/runc").glob("*/state.json") if str(folder) in path.read_text()]
    return [*mounts, *(os.listdir(folder) if folder.exists() else []), *containers]


def arguments(lazyfs: Lazyfs, *more: str) -> list[str]:
    return [sys.executable, "-m", "lazyfs", "run", "--store", str(lazyfs.store), *more]


def said(lazyfs: Lazyfs, *more: str) -> list[str]:
    return lazyfs.run("run", "--store", lazyfs.store, *more).stdout.decode().splitlines()


def test_hello(lazyfs: Lazyfs, image: str) -> None:
    """From nothing to a program's output; standard error has nothing to say."""
    done = lazyfs.run("run", "--store", lazyfs.store, image, "echo", "hello")
    assert (done.stdout, done.stderr) == (b"hello\n", b"")


def test_the_images_own_command(lazyfs: Lazyfs, image: str) -> None:
    """Without CMD it is the image's, here a shell that reads what comes in."""
    done = subprocess.run(
        arguments(lazyfs, image), input=b"echo $0; exit 4\n", capture_output=True, env=lazyfs.environment, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == (b"bash\n", 4)


def test_options(lazyfs: Lazyfs, image: str) -> None:
    """User, variables, working directory and network are the user's; what looks like an option behind the image is the program's."""
    environment = lazyfs.environment | {"OURS": "passed on"}
    options = ["-e", "A=b c", "--env", "OURS", "-e", "UNSET", "-u", "daemon:games", "-w", "/usr/lib", "--net", "host"]
    script = 'echo "$A" "$OURS" "${UNSET-unset}"; id -un; id -gn; pwd; readlink /proc/self/ns/net; echo "$@"'
    found = lazyfs.run("run", "--store", lazyfs.store, *options, image, "sh", "-c", script, "sh", "--env", "-u", env=environment)
    network = os.readlink("/proc/self/ns/net")
    assert found.stdout.decode().splitlines() == ["b c passed on unset", "daemon", "games", "/usr/lib", network, "--env -u"]


def test_setuid_programs(lazyfs: Lazyfs, image: str) -> None:
    """They make nobody root, unless --allow-new-privileges says so: then sudo works, from the image's own mount."""
    script = "cp /usr/bin/id /suid && chmod 4755 /suid && setpriv --reuid 1 --regid 1 --clear-groups /suid -u"
    assert said(lazyfs, image, "sh", "-c", script) == ["1"]
    assert said(lazyfs, "--allow-new-privileges", image, "sh", "-c", script) == ["0"]


def test_changes_are_thrown_away(lazyfs: Lazyfs, image: str) -> None:
    """A container writes where it likes; the next one sees nothing of it."""
    script = (
        "rm -r /etc/apt; echo x > /bin/sh; mkdir -m 0 /var/deeper; touch /var/deeper/file; chmod 0 /var/deeper/file; mkfifo /fifo"
    )
    lazyfs.run("run", "--store", lazyfs.store, image, "bash", "-c", script)
    assert said(lazyfs, image, "sh", "-c", "ls -d /etc/apt /var/deeper* 2> /dev/null; true") == ["/etc/apt"]


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["sh", "-c", "exit 3"], 3, ""),
        (["no-such-program"], 127, "executable file not found"),
        (["/etc"], 126, "permission denied|is a directory"),
    ],
)
def test_exit_codes(lazyfs: Lazyfs, image: str, more: list[str], code: int, words: str) -> None:
    """The program's own, and a shell's where there is none."""
    assert re.search(words, lazyfs.run("run", "--store", lazyfs.store, image, *more, code=code).stderr.decode())


def test_failures_of_ours_are_125(lazyfs: Lazyfs, image: str, tmp_path: Path) -> None:
    """No image, no such user: in words, and with a code that no program's own is mixed up with."""
    for source, options, words in (
        (f"oci:{tmp_path}", [], "is not an OCI layout"),
        (image, ["--user", "nobody-knows"], "the image knows no user 'nobody-knows'"),
        (image.rpartition(":")[0] + ":none", [], "none"),
    ):
        done = lazyfs.run("run", "--store", lazyfs.store, *options, source, "true", code=125)
        assert words in done.stderr.decode() and done.stderr.startswith(b"lazyfs: ")


def test_wrong_command_lines_are_2(lazyfs: Lazyfs, image: str) -> None:
    """What can be told without asking anybody."""
    for options in (["--net", "bridge"], ["--tty"], ["--record", "/no/such/folder/record"], ["--platform", "x"]):
        lazyfs.run("run", "--store", lazyfs.store, *options, image, "true", code=2)


def test_what_it_imports(lazyfs: Lazyfs, image: str) -> None:
    """A container's start does not wait for what only a daemon needs."""
    command = [sys.executable, "-X", "importtime", "-m", "lazyfs", "run", "--store", str(lazyfs.store), image, "true"]
    imported = {line.rpartition("|")[2].strip() for line in run(*command, env=lazyfs.environment).stderr.decode().splitlines()}
    assert {"lazyfs.bundle.runc", "lazyfs.daemon.client"} <= imported
    assert not imported & {"trio", "httpx", "h11", "pyfuse3", "rich", "sqlite3", "asyncio", "ssl", "subprocess", "zstandard"}


@contextmanager
def started(lazyfs: Lazyfs, image: str, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A container whose program has said `ready`."""
    command = arguments(lazyfs, image, "bash", "-c", script)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=lazyfs.environment) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_signals_are_the_programs(lazyfs: Lazyfs, image: str) -> None:
    """SIGTERM reaches it, and its end is ours; it is cleared up behind it."""
    with started(lazyfs, image, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done") as process:
        process.terminate()
        assert process.wait(PATIENCE_S) == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_before_the_program_runs(lazyfs: Lazyfs, number: signal.Signals) -> None:
    """A registry that never answers: a signal ends the command, and nothing of it is left."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"127.0.0.1:{silent.getsockname()[1]}/some/image:v1"
        with subprocess.Popen(arguments(lazyfs, source, "true"), stderr=subprocess.PIPE, env=lazyfs.environment) as process:
            silent.settimeout(PATIENCE_S)
            with silent.accept()[0]:
                process.send_signal(number)
                assert process.wait(PATIENCE_S) == 128 + number


def test_terminal(lazyfs: Lazyfs, image: str) -> None:
    """On a terminal the program has one, and Ctrl-C is its own."""
    # No `read`: a signal on bash's way into it is heard after a line only.
    script = "trap 'exit 6' INT; tty; stty size; while :; do sleep 0.01; done"
    with terminal(arguments(lazyfs, image, "bash", "-c", script), env=lazyfs.environment) as screen:
        screen.until(b"/dev/pts/0\r\n33 99\r\n")
        screen.type(b"\x03")
        assert screen.process.wait(PATIENCE_S) == 6


def test_record(lazyfs: Lazyfs, image: str, tmp_path: Path) -> None:
    """What the program read comes out in the order of its first touch, whether or not it is here already, and convert takes it."""
    script = "cat /etc/debian_version /etc/issue /etc/debian_version > /dev/null; chmod 600 /etc/adduser.conf; stat /etc/hostname"
    records = [tmp_path / "first", tmp_path / "second"]
    for record in records:
        lazyfs.run("run", "--store", lazyfs.store, "--record", record, image, "bash", "-c", script, code=None)
    first, second = map(read_list, records)
    wanted = [path for path in first if path in {b"etc/debian_version", b"etc/issue"}]
    assert wanted == [b"etc/debian_version", b"etc/issue"]
    assert any(path.endswith(b"bin/bash") for path in first) and first == second
    line = json.loads(records[0].read_text().splitlines()[0])
    assert line["manifestDigest"].startswith("sha256:") and line["layerIndex"] >= 0


def test_bundle(lazyfs: Lazyfs, image: str, tmp_path: Path) -> None:
    """--bundle leaves what runc runs by itself, changes kept; unmounted by hand."""
    bundle = tmp_path / "bundle"
    options = ("--allow-new-privileges", "-e", "A=1")
    output = said(lazyfs, "--bundle", str(bundle), *options, image, "sh", "-c", "echo $A; touch /new; ls /new")
    assert json.loads((bundle / "config.json").read_text())["process"]["noNewPrivileges"] is False
    assert str(bundle) in output[0]
    for _ in range(2):
        assert run("runc", "run", "--bundle", bundle, f"test-{os.getpid()}").stdout == b"1\n/new\n"
    assert (bundle / "upper/new").exists() and oct(bundle.stat().st_mode & 0o777) == "0o700"
    assert b"cannot make" in lazyfs.run("run", "--store", lazyfs.store, "--bundle", bundle, image, code=125).stderr
    assert (bundle / "rootfs/new").exists()
    lazyfs.run("umount", bundle / "rootfs")


def test_bundle_that_cannot_be_made(lazyfs: Lazyfs, image: str, tmp_path: Path) -> None:
    """Neither directory nor mount is left of it."""
    lazyfs.run("run", "--store", lazyfs.store, "--bundle", tmp_path / "bundle", "--user", "nobody-knows", image, code=125)
    assert not (tmp_path / "bundle").exists()


def test_image_that_is_not_lazy(lazyfs: Lazyfs, originals: Callable[[str], str]) -> None:
    """It runs as well; --lazy-only refuses it."""
    source = originals("debian")
    done: Done = lazyfs.run("run", "--store", lazyfs.store, "--lazy-only", source, "echo", "hello", code=125)
    assert b"lazyfs convert" in done.stderr and done.stdout == b""
    assert said(lazyfs, source, "echo", "hello") == ["hello"]


def test_killed(lazyfs: Lazyfs, image: str) -> None:
    """kill -9 leaves container and folder; the folder is held as long as the container runs."""
    with started(lazyfs, image, "echo ready; exec sleep 1000") as process:
        folder = (lazyfs.store / "containers").resolve()
        (name,) = (path.name for path in folder.iterdir() if path.is_dir())
        process.kill()
        process.wait()
        assert sweep(lazyfs.store, lambda _: None) == []
        run("runc", "kill", name, "KILL")
        for _ in moments():
            if not Path(f"/run/runc/{name}").exists():
                break
        root = folder / name / "rootfs"
        for _ in moments():
            # lazyfsd does the same, now and then.
            sweep(lazyfs.store, lambda _: mounted_at(root) and run("umount", root, code=None))
            if not (folder / name).exists():
                break
