"""What an image says about its program, and what the user puts over it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lazyfs.bundle.settings import Settings, read_settings
from lazyfs.errors import InvalidManifest, LazyfsError

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def document(**config: Any) -> str:
    return json.dumps({"architecture": "amd64", "config": config, "rootfs": {"type": "layers", "diff_ids": []}})


def test_image_alone() -> None:
    """Entrypoint and arguments follow each other; the rest is the image's."""
    config = document(Entrypoint=["/init"], Cmd=["serve", "-v"], Env=["A=1", "B=x=y"], User="www:5", WorkingDir="/srv", Labels={})
    assert read_settings(config) == Settings(("/init", "serve", "-v"), (PATH, "A=1", "B=x=y"), "www:5", "/srv")


def test_user_over_the_image() -> None:
    """A command replaces CMD but not the entrypoint; a variable that is set again has one value; user and directory are overridden."""
    config = document(Entrypoint=["/init"], Cmd=["serve"], Env=["A=1", "PATH=/bin"], User="www", WorkingDir="/srv")
    found = read_settings(config, ["sh", "-c", "id"], env=["A=2", "C="], user="0:0", workdir="/tmp")
    assert found == Settings(("/init", "sh", "-c", "id"), ("PATH=/bin", "A=2", "C="), "0:0", "/tmp")


@pytest.mark.parametrize("config", ["{}", '{"config": null}', document(Entrypoint=None, Cmd=None, Env=None, User=None)])
def test_bare_image(config: str) -> None:
    """What Go leaves out or writes as null is empty: uid 0 in / with the usual PATH."""
    assert read_settings(config, ["sh"]) == Settings(("sh",), (PATH,), "", "/")
    with pytest.raises(LazyfsError, match="names no program"):
        read_settings(config)


def test_what_go_reads_is_read() -> None:
    """Field names in any case, a null in a list, text that is not UTF-8 in unused fields."""
    config = (
        b'{"author": "Ren\xe9", "Config": {"entrypoint": null, "CMD": ["sh", null], "Env": [null, "A=1"], "workingDir": "/srv"}}'
    )
    assert read_settings(config) == Settings(("sh", ""), (PATH, "A=1"), "", "/srv")


@pytest.mark.parametrize(
    ("workdir", "clean"), [("", "/"), ("srv", "/srv"), ("//srv/", "/srv"), ("/a/../../b", "/b"), ("..", "/"), ("//", "/")]
)
def test_working_directory_is_absolute(workdir: str, clean: str) -> None:
    """runc takes an absolute directory, and an image may say anything."""
    assert read_settings(document(Cmd=["sh"], WorkingDir=workdir)).workdir == clean


def test_variables_without_a_value_are_none() -> None:
    """`NAME` and `=value` set nothing."""
    assert read_settings(document(Cmd=["sh"], Env=["NAME", "=value", "", "A=1"])).env == (PATH, "A=1")


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "{",
        '{"config": []}',
        document(Cmd="sh"),
        document(Cmd=[1]),
        document(Env={"A": "1"}),
        document(User=0),
        "[" * 10**5,
    ],
)
def test_what_is_no_config(config: str) -> None:
    """A document that means something else is refused in words."""
    with pytest.raises(InvalidManifest, match="cannot be run from"):
        read_settings(config, ["sh"])


@pytest.mark.parametrize("command", [["a\0b"], ["x" * (1 << 20)], ["\udcff"]])
def test_what_no_program_can_be_given(command: list[str]) -> None:
    """NUL, a megabyte, bytes that are not text: refused before a runtime fails on it."""
    with pytest.raises(LazyfsError, match=r"NUL|limit|UTF-8"):
        read_settings(document(), command)
