"""Writes a bundle: a directory with `rootfs`, where the image is already mounted, and config.json."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from lazyfs.bundle.account import find_account
from lazyfs.bundle.machine import this_machine
from lazyfs.bundle.settings import Settings
from lazyfs.bundle.spec import Net, make_spec
from lazyfs.errors import LocalError

ROOT = "rootfs"
_CONFIG = "config.json"


def write_bundle(
    directory: Path,
    settings: Settings,
    *,
    hostname: str,
    net: Net,
    terminal: os.terminal_size | None,
    new_privileges: bool = False,
) -> None:
    """Write `directory`/config.json for this machine; the user is looked up in `directory`/rootfs. The other arguments: `make_spec`.

    May wait for two fetches. Raises LazyfsError; nothing is written then.
    """
    account = find_account(directory / ROOT, settings.user)
    spec = make_spec(
        settings, account, this_machine(), hostname=hostname, net=net, terminal=terminal, new_privileges=new_privileges
    )
    data = msgspec.json.format(msgspec.json.encode(spec)) + b"\n"
    try:
        # 0600: the environment may hold secrets.
        with open(os.open(directory / _CONFIG, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
    except OSError as error:
        raise LocalError(f"cannot write {directory / _CONFIG}: {error.strerror}") from error
