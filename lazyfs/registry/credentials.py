"""Credentials for a registry: `--creds`, or the `auths` of docker's config.json.

They are read when a registry asks for them, never before, and again each time: tokens of the large clouds live for hours, and a
mount lives longer than the file's content at its start. No repr, message or log line contains a secret.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from lazyfs.errors import UsageError
from lazyfs.format.foreign_json import decode, fields

_MAX_CONFIG: Final = 1 << 20
_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


class Credentials(NamedTuple):
    """A user with a password, or with an identity token (an OAuth 2 refresh token)."""

    user: str
    password: str
    identity_token: str = ""

    def __repr__(self) -> str:
        return "Credentials(…)"

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")


def config_path() -> Path:
    """The location of docker's config.json."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def configured(host: str) -> Credentials | None:
    """The entry in config.json's `auths` for the registry that users call `host`.

    Raises UsageError if the file cannot be read; a missing file has no entries. Reads a file: call it in a thread.
    """
    path = config_path()
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        config = decode(data) if len(data) <= _MAX_CONFIG else None
    except msgspec.DecodeError:
        config = None
    auths = fields(config, ("auths",)).get("auths", {}) if isinstance(config, dict) else None
    if not isinstance(auths, dict):
        raise UsageError(f"{path} is not a configuration of docker", hint="Repair it, or name another folder in DOCKER_CONFIG")
    for key in _keys(host):
        found = auths.get(key)
        if isinstance(found, dict):
            found = fields(found, ("username", "password", "auth", "identitytoken"))
            credentials = _decode(found)
            if credentials is None and found.get("auth"):
                raise UsageError(f"the credentials for {key} in {path} cannot be decoded", hint="Run docker login again")
            if credentials is not None:
                return credentials
    return None


def _keys(host: str) -> tuple[str, ...]:
    if host == "docker.io":
        return _HUB_KEYS
    return (host, f"https://{host}", f"http://{host}", f"https://{host}/v2/", f"https://{host}/v1/")


def _decode(found: dict[str, Any]) -> Credentials | None:
    user, password = _text(found, "username"), _text(found, "password")
    if _text(found, "auth"):
        try:
            user, colon, password = base64.b64decode(_text(found, "auth"), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not colon:
            return None
        password = password.rstrip("\0")
    token = _text(found, "identitytoken")
    return Credentials(user, password, token) if user or token else None


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key, "")
    return value if isinstance(value, str) else ""
