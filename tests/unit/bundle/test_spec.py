"""config.json, as a function of the image's settings, its user and this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazyfs.bundle.account import Account
from lazyfs.bundle.bundle import write_bundle
from lazyfs.bundle.machine import Machine, this_machine
from lazyfs.bundle.settings import Settings
from lazyfs.bundle.spec import Net, make_spec
from lazyfs.errors import LazyfsError, LocalError

SETTINGS = Settings(("sh", "-c", "id"), ("PATH=/bin", "A=1"), "www", "/srv")
MACHINE = Machine("host-name", 5000, False, ("/etc/resolv.conf",))


def spec(
    env: tuple[str, ...] = SETTINGS.env, machine: Machine = MACHINE, net: Net = "none", terminal: os.terminal_size | None = None
) -> Any:
    settings = msgspec.structs.replace(SETTINGS, env=env)
    account = Account(33, 34, (34, 100), "/var/www")
    made = make_spec(settings, account, machine, hostname="of-its-own", net=net, terminal=terminal)
    return json.loads(msgspec.json.encode(made))


def kinds(made: Any) -> set[str]:
    return {namespace["type"] for namespace in made["linux"]["namespaces"]}


def test_process() -> None:
    """What the image says reaches the process; HOME is the user's; no right is ambient or inherited."""
    process = spec()["process"]
    assert process["args"] == ["sh", "-c", "id"] and process["cwd"] == "/srv"
    assert process["env"] == ["PATH=/bin", "A=1", "HOME=/var/www"]
    assert process["user"] == {"uid": 33, "gid": 34, "additionalGids": [34, 100]}
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}
    assert "CAP_SYS_ADMIN" not in str(process["capabilities"]) and process["noNewPrivileges"]
    assert not process["terminal"] and "consoleSize" not in process


def test_new_privileges() -> None:
    """Nothing but the one bit changes: the bounding set stays, and nothing is ambient or inheritable, as under Docker."""
    account = Account(33, 34, (34,), "/")
    default, allowed = (
        make_spec(SETTINGS, account, MACHINE, hostname="h", net="none", terminal=None, new_privileges=allow)
        for allow in (False, True)
    )
    assert default["process"].pop("noNewPrivileges") is True and allowed["process"].pop("noNewPrivileges") is False
    assert default == allowed


def test_variables_that_are_set_stay() -> None:
    """The image's HOME and TERM come before ours."""
    env = ("PATH=/bin", "HOME=/data", "TERM=vt100")
    assert spec(env, terminal=os.terminal_size((80, 24)))["process"]["env"] == list(env)


def test_terminal() -> None:
    """It begins with the size that ours has, and TERM says what it is."""
    process = spec(terminal=os.terminal_size((80, 24)))["process"]
    assert process["terminal"] and process["consoleSize"] == {"width": 80, "height": 24}
    assert "TERM=xterm" in process["env"]


def test_network() -> None:
    """Without one the container has a name and a namespace of its own; with the machine's, its name and its resolver."""
    alone, shared = spec(), spec(net="host")
    assert kinds(alone) - kinds(shared) == {"network"} and kinds(shared) < kinds(alone)
    assert (alone["hostname"], shared["hostname"]) == ("of-its-own", "host-name")
    (bound,) = [mount for mount in shared["mounts"] if mount["type"] == "bind"]
    assert bound["destination"] == "/etc/resolv.conf" and "ro" in bound["options"]
    assert not [mount for mount in alone["mounts"] if mount["type"] == "bind"]


@pytest.mark.parametrize(("hard", "soft"), [(5000, 1024), (512, 512)])
def test_open_files(hard: int, soft: int) -> None:
    """A limit is never raised: this process may lack the right to."""
    assert spec(machine=MACHINE._replace(open_files=hard))["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}
    ]


def test_cgroups() -> None:
    """A namespace of its own where there is only the unified hierarchy, as `runc spec` has it."""
    assert kinds(spec(machine=MACHINE._replace(unified_cgroups=True))) - kinds(spec()) == {"cgroup"}


def test_bundle_is_private_and_written_once(tmp_path: Path) -> None:
    """The variables may hold secrets; a bundle that is there already is not changed."""
    (tmp_path / "rootfs").mkdir()
    settings = msgspec.structs.replace(SETTINGS, user="5")
    write_bundle(tmp_path, settings, hostname="x", net="none", terminal=None)
    config = tmp_path / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text())["process"]["rlimits"][0]["hard"] == this_machine().open_files
    with pytest.raises(LocalError, match="cannot write"):
        write_bundle(tmp_path, settings, hostname="x", net="none", terminal=None)


def test_no_bundle_for_an_unknown_user(tmp_path: Path) -> None:
    """Then nothing is written."""
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(LazyfsError, match="knows no user 'www'"):
        write_bundle(tmp_path, SETTINGS, hostname="x", net="none", terminal=None)
    assert os.listdir(tmp_path) == ["rootfs"]
