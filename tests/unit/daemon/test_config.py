"""The service's configuration: what it means, and what is said of a wrong one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lazyfs.daemon.config import Address, Config, load_config, parse_config
from lazyfs.errors import LocalError, UsageError
from tests.commands import run

SHIPPED = Path(__file__).parents[3] / "systemd" / "config.toml"
CHECK = (sys.executable, "-m", "lazyfs.daemon", "--check-config", "--config")


def test_a_file_that_says_nothing() -> None:
    """It is that of one containerd at the default socket; the shipped file, all comments, says the same."""
    assert parse_config(b"", "x") == Config() == load_config(SHIPPED)
    assert Config().containerds == {"containerd": Path("/run/lazyfs/snapshots.sock")}
    assert Config().metrics is None


def test_every_key_is_documented() -> None:
    """The shipped file with its examples uncommented is right, has every key, and shows the defaults where there are any."""
    text = re.sub(r"^#(?=[\[a-z])", "", SHIPPED.read_text(), flags=re.MULTILINE)
    shown = parse_config(text.encode(), "x")
    assert shown == Config(
        store=Path("/var/lib/lazyfs"),
        store_size=0,
        plain_http=frozenset({"registry.example:5000"}),
        metrics=Address("127.0.0.1", 9709),
    )
    keys = set(re.findall(r"^\[*(\w+)", text, re.MULTILINE))
    assert keys == {
        "store",
        "store_size",
        "background",
        "metrics",
        "log_level",
        "containerd",
        "name",
        "socket",
        "registry",
        "plain_http",
    }


def test_what_everything_means() -> None:
    """Several containerds, sizes with units or none, hosts in lower case, an IPv6 address."""
    text = b"""
        store = "/srv/lazyfs"
        store_size = "20G"
        background = false
        metrics = "[::1]:99"
        log_level = "warning"
        [[containerd]]
        socket = "/run/a.sock"
        [[containerd]]
        name = "second"
        socket = "/run/b.sock"
        [registry."Registry.Example:5000"]
        plain_http = true
        [registry."other.example"]
    """
    assert parse_config(text, "x") == Config(
        store=Path("/srv/lazyfs"),
        store_size=20 << 30,
        background=False,
        containerds={"containerd": Path("/run/a.sock"), "second": Path("/run/b.sock")},
        plain_http=frozenset({"registry.example:5000"}),
        metrics=Address("::1", 99),
        log_level="warning",
    )
    assert parse_config(b"containerd = []\nstore_size = 4096", "x") == Config(containerds={}, store_size=4096)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('\n\nstor = "/x"', 3, "there is no key 'stor'; there are store, store_size, "),
        ('[[containerd]]\nsocket = "/a"\n[[containerd]]\nname = "b"\nsokcet = "/b"', 5, "no key 'sokcet' in [[containerd]]"),
        ('[registry."a:1"]\nplain_http = true\ncreds = "u:p"', 3, "no key 'creds' in [registry.HOST]"),
        ('background = "yes"', 1, "background is to be true or false"),
        ("store = 7", 1, "store is to be text in quotes"),
        ("store = [\n  1,\n  2,\n]", 4, "store is to be text in quotes"),
        ("store_size = true", 1, "store_size is to be a number, or text in quotes"),
        ('# loud\nlog_level = "loud"', 2, "log_level is to be one of debug, info, warning, error"),
        ('store = "var/lib"', 1, "'var/lib' is not an absolute path"),
        ('store_size = "7 apples"', 1, "'7 apples' is not a size"),
        ('metrics = "9709"', 1, "'9709' is not HOST:PORT"),
        ('metrics = "localhost:70000"', 1, "is not HOST:PORT"),
        ('[containerd]\nsocket = "/a"', 1, "write [[containerd]], once for each"),
        ('[[containerd]]\nname = "x"', 1, "[[containerd]] lacks socket"),
        ('[[containerd]]\nsocket = "a"', 2, "'a' is not an absolute path"),
        (f'[[containerd]]\nsocket = "/{"x" * 107}"', 2, "at most 107 bytes"),
        ('[[containerd]]\nname = "../x"\nsocket = "/a"', 2, "'../x' is not a name"),
        ('[[containerd]]\nsocket = "/a"\n\n[[containerd]]\nsocket = "/b"', 4, "two containerds are called 'containerd'"),
        ('[[containerd]]\nsocket = "/a"\n[[containerd]]\nname = "b"\nsocket = "/a"', 5, "two containerds have the socket /a"),
        ("registry = 1", 1, 'write [registry."HOST"]'),
        ("\nregistry.x = 1", 2, "registry.x is not a table"),
        ('[registry."a b"]', 1, "'a b' is not HOST or HOST:PORT"),
        ('[registry."a.example/team"]', 1, "is more than a HOST or HOST:PORT"),
    ],
)
def test_a_mistake_is_reported_with_its_line(text: str, line: int, said: str) -> None:
    """File, line, key, and what would be right."""
    with pytest.raises(UsageError) as caught:
        parse_config(text.encode(), "FILE")
    assert str(caught.value).startswith(f"FILE, line {line}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [b"a = ", b"\xff", b"a = 1\na = 2"])
def test_what_is_no_toml(data: bytes) -> None:
    """The error names its line and column."""
    with pytest.raises(UsageError, match="FILE is not TOML"):
        parse_config(data, "FILE")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """A file that is not there, and one that is too large, are errors in words."""
    with pytest.raises(LocalError, match="cannot be read: No such file"):
        load_config(tmp_path / "config.toml")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        load_config(tmp_path / "large")


def test_checked_on_the_command_line(tmp_path: Path) -> None:
    """Nothing wrong is 0, a mistake 2, no file 5; and a lazyfsd with a wrong one does not start."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("stor = 1\n")
    assert b"nothing is wrong" in run(*CHECK, SHIPPED).stdout
    assert run(*CHECK, wrong, code=2).stderr.decode().startswith(f"lazyfsd: {wrong}, line 1: ")
    assert b"cannot be read" in run(*CHECK, tmp_path / "none", code=5).stderr
    started = run(sys.executable, "-m", "lazyfs.daemon", "--store", tmp_path / "store", "--config", wrong, code=2)
    assert b"line 1" in started.stderr
    assert not (tmp_path / "store").exists()
