"""Bundles as runc runs them, on the root file system that umoci unpacks: no lazy mount is needed to see what a container is."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Done, run, umoci_unpack
from tests.lazyfsd import moments
from tests.processes import is_pending
from tests.terminal import terminal

pytestmark = [pytest.mark.images, pytest.mark.umoci, pytest.mark.containerd]

PATIENCE_S = 30


@pytest.fixture(scope="module")
def tree(images: Callable[[str], str], session_folder: Path) -> Path:
    """Debian, unpacked. Not to be changed."""
    return umoci_unpack(images("debian"), session_folder / "debian-for-bundles")


@pytest.fixture
def bundle(tree: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with a writable `rootfs` in it."""
    folders = [tmp_path / name for name in ("bundle/rootfs", "upper", "work")]
    for folder in folders:
        folder.mkdir(parents=True)
    root, upper, work = folders
    run("mount", "-t", "overlay", "-o", f"lowerdir={tree},upperdir={upper},workdir={work}", "overlay", root)
    yield root.parent
    run("umount", root)


def command(bundle: Path, *args: str, config: dict[str, Any] | None = None, **options: str) -> list[str]:
    document = json.dumps({"config": {"Cmd": args} | (config or {})})
    return [sys.executable, "-m", "tests.run_bundle", str(bundle), document, json.dumps(options)]


def inside(bundle: Path, *args: str, code: int = 0, **more: Any) -> Done:
    return run(*command(bundle, *args, **more), code=code)


def said(bundle: Path, script: str, **more: Any) -> list[str]:
    return inside(bundle, "sh", "-c", script, **more).stdout.decode().splitlines()


def test_container(bundle: Path) -> None:
    """Host name, first process, working directory made where it is missing, writable root, HOME, limits: what a program finds."""
    script = 'hostname; echo $$; pwd; echo $HOME; touch /new; ulimit -n; echo "$TERM"; cat /proc/self/oom_score_adj'
    found = said(bundle, script, config={"WorkingDir": "/made/for/it"})
    assert found == [
        "of-the-test",
        "1",
        "/made/for/it",
        "/root",
        "1024",
        "",
        Path("/proc/self/oom_score_adj").read_text().strip(),
    ]
    assert not list(Path("/run/runc").glob("lazyfs-test-*"))


def test_what_root_may(bundle: Path) -> None:
    """An entrypoint that gives its data to its user works; mounting and writing to /proc/sys does not, and sysfs is read-only."""
    found = said(
        bundle,
        "chown -R daemon /var/cache && setpriv --reuid daemon --regid daemon --clear-groups id -un;"
        "mount -t tmpfs x /mnt 2>/dev/null || echo no mount; (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo no sysctl;"
        "cat /proc/kcore 2>/dev/null | wc -c; touch /sys/x 2>/dev/null || echo no sysfs; mknod /tmp/sda b 8 0; cat /tmp/sda 2>/dev/null || echo no disk",
    )
    assert found == ["daemon", "no mount", "no sysctl", "0", "no sysfs", "no disk"]


def test_what_other_users_may(bundle: Path) -> None:
    """The image's user has its ids and groups, and none of root's capabilities, ambient ones included."""
    with (bundle / "rootfs/etc/group").open("a") as file:
        file.write("lab:x:4711:daemon,other\n")
    found = said(
        bundle,
        "id -u; id -g; id -G; echo $HOME; grep -E 'Cap(Inh|Prm|Eff|Amb)|NoNewPrivs' /proc/self/status",
        config={"User": "daemon"},
    )
    none = "0" * 16
    assert found[:4] == ["1", "1", "1 4711", "/usr/sbin"]
    assert [line.split()[1] for line in found[4:]] == [none, none, none, none, "1"]
    assert said_again(bundle, "id -u; id -G", user="1234:99") == ["1234", "99"]


def test_new_privileges(bundle: Path) -> None:
    """A setuid program and a file capability give a user nothing, unless that is allowed; then what Docker would, and no more."""
    root = bundle / "rootfs"
    for name, program in (("suid", "usr/bin/id"), ("cap", "usr/bin/cat"), ("beyond", "usr/bin/cat")):
        shutil.copy(root / program, root / name)
        (root / name).chmod(0o4755 if name == "suid" else 0o755)
    os.setxattr(root / "cap", "security.capability", file_capability(10))  # CAP_NET_BIND_SERVICE
    os.setxattr(root / "beyond", "security.capability", file_capability(21))  # CAP_SYS_ADMIN is not in the bounding set
    own = "grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status | cut -f 2 | sort -u"
    script = f"/suid -u; {own}; /cap /proc/self/status | grep CapEff; /beyond /dev/null 2>/dev/null || echo refused"
    config = {"User": "daemon"}
    assert said(bundle, script, config=config) == ["1", "0" * 16, "CapEff:\t" + "0" * 16, "refused"]
    allowed = said_again(bundle, script, config=config, new_privileges="yes")
    assert allowed == ["0", "0" * 16, f"CapEff:\t{1 << 10:016x}", "refused"]


def file_capability(number: int) -> bytes:
    """security.capability, version 2, of one capability below 32: permitted, and effective at once."""
    return struct.pack("<IIIII", 0x02000001, 1 << number, 0, 0, 0)


def said_again(bundle: Path, script: str, **more: Any) -> list[str]:
    (bundle / "config.json").unlink()
    (bundle / "pid").unlink()
    return said(bundle, script, **more)


def test_network(bundle: Path) -> None:
    """`none` is a loopback device that is up; `host` is the machine's network, its name and its resolver."""
    script = "grep -c : /proc/net/dev; readlink /proc/self/ns/net; hostname; cat /etc/resolv.conf | md5sum"
    alone, ours = said(bundle, script), said_again(bundle, script, net="host")
    host = os.readlink("/proc/self/ns/net")
    assert alone[1] != host and alone[:1] == ["1"] and alone[2] == "of-the-test"
    assert ours[1] == host and ours[2] == os.uname().nodename
    resolver = Path("/etc/resolv.conf")
    assert not resolver.exists() or ours[3].split()[0] == run("md5sum", resolver).stdout.decode().split()[0]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("sh", "-c", "exit 3"), 3, ""),
        (("sh", "-c", "setpriv --pdeathsig clear sh -c 'kill -9 $$'; exit $?"), 137, ""),
        (("no-such-program",), 127, "executable file not found"),
        (("/no/such/program",), 127, "no such file"),
        (("/etc/passwd",), 126, "permission denied"),
        (("/etc",), 126, "permission denied|is a directory"),
    ],
)
def test_exit_codes(bundle: Path, args: tuple[str, ...], code: int, words: str) -> None:
    """The program's own code; 127 and 126, with runc's words, where there is no program to run."""
    assert re.search(words, inside(bundle, *args, code=code).stderr.decode())


def test_runc_itself_fails(bundle: Path) -> None:
    """What no program has to do with is 125."""
    (bundle / "rootfs/proc").rmdir()
    (bundle / "rootfs/proc").write_text("not a directory")
    assert b"runc run failed" in inside(bundle, "true", code=125).stderr


@contextmanager
def started(bundle: Path, script: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A container whose program has said `ready`."""
    arguments = command(bundle, "sh", "-c", script)
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            run("runc", "delete", "--force", f"lazyfs-test-{process.pid}")


def first_process(bundle: Path) -> int:
    """The container's, as this side sees it; runc writes it down when the program runs already."""
    end = time.monotonic() + PATIENCE_S
    while not (bundle / "pid").exists():
        assert time.monotonic() < end
    return int((bundle / "pid").read_text())


def test_standard_input(bundle: Path) -> None:
    """What comes in on standard input reaches the program, and so does its end."""
    with started(bundle, "echo ready; tr a-z A-Z") as process:
        output, _ = process.communicate(b"abc\n", timeout=PATIENCE_S)
        assert output == b"ABC\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_signals_reach_the_program(bundle: Path, number: int) -> None:
    """A signal sent to us is the program's, once; what it makes of it is its own affair, and its exit code ours."""
    script = f"trap 'echo caught; n=$((n+1)); [ $n = 2 ] && exit 42' {number}; echo ready; while :; do sleep 0.01; done"
    with started(bundle, script) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.send_signal(number)
            assert process.stdout.readline() == b"caught\n"
        assert process.wait(PATIENCE_S) == 42


def test_program_killed_by_a_signal(bundle: Path) -> None:
    """128 and the signal's number, as a shell has it."""
    with started(bundle, "echo ready; exec sleep 60") as process:
        os.kill(first_process(bundle), signal.SIGKILL)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL


def test_runc_killed(bundle: Path) -> None:
    """A container does not outlive its runc."""
    with started(bundle, "echo ready; exec sleep 60") as process:
        command_line = Path(f"/proc/{first_process(bundle)}/cmdline")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL
        assert not command_line.exists() or not command_line.read_bytes(), "it runs still"


def test_terminal(bundle: Path) -> None:
    """The program has a terminal of the user's size, which follows it; what is typed goes there, Ctrl-C as a signal; the end is its own."""
    # No `read` at the end: a signal on a shell's way into it is heard after a line only.
    script = (
        "trap 'echo interrupted; exit 7' INT; tty; echo $TERM; stty size; read line; echo \"<$line>\";"
        'until [ "$(stty size)" = "40 120" ]; do sleep 0.01; done; echo resized; while :; do sleep 0.01; done'
    )
    with terminal(command(bundle, "sh", "-c", script, terminal="yes")) as screen:
        screen.until(b"/dev/pts/0\r\nxterm\r\n33 99\r\n")
        screen.type(b"hello\r")
        screen.until(b"<hello>\r\n")
        screen.resize(40, 120)
        screen.until(b"resized\r\n")
        screen.type(b"\x03")
        screen.until(b"interrupted")
        assert screen.process.wait(PATIENCE_S) == 7


def test_interrupt_from_the_terminal_comes_once(bundle: Path) -> None:
    """Without a terminal of its own the container hears Ctrl-C through runc, which is in the foreground too, and not from us as well."""
    script = "trap 'n=$((n+1)); echo interrupt $n' INT; trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    with terminal(command(bundle, "sh", "-c", script)) as screen:
        screen.until(b"ready\r\n")
        screen.type(b"\x03")
        screen.until(b"interrupt 1\r\n")
        # A signal that comes while the one before it is pending is one with it.
        assert any(not is_pending(screen.process.pid, signal.SIGINT) for _ in moments())
        screen.process.send_signal(signal.SIGINT)
        screen.until(b"interrupt 2\r\n")
        screen.process.send_signal(signal.SIGTERM)
        assert screen.process.wait(PATIENCE_S) == 5
        assert b"interrupt" not in screen.seen
