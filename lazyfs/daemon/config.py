"""The configuration of lazyfsd as a service: TOML, read once at the start. systemd/config.toml documents every key.

Errors show in `lazyfsd --check-config`, or in a service that does not start. So each message names the file, the line and the key, and what
would be right. An unknown key is an error as well, because it has no effect.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import FieldInfo

from lazyfs.errors import BadAnswer, LocalError, UsageError
from lazyfs.registry.access import AccessOptions, api_url
from lazyfs.store.location import default_directory
from lazyfs.store.size import parse_size

DEFAULT_SOCKET: Final = Path("/run/lazyfs/snapshots.sock")
_MAX_SIZE: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
_MAX_SOCKET_PATH: Final = 107
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})\Z")
_EXPECTED: Final[dict[object, str]] = {bool: "true or false", str: "text in quotes", str | int: "a number, or text in quotes"}
"""Names of the types of keys, for messages."""
_LISTS: Final = {"containerd": "[[containerd]]", "registry": "[registry.HOST]"}
LEVELS: Final = ("debug", "info", "warning", "error")
T = TypeVar("T", bound=msgspec.Struct)


class Address(NamedTuple):
    """Where metrics are served."""

    host: str
    port: int


class Config(msgspec.Struct, frozen=True):
    """The configuration; its defaults are those of an empty file."""

    store: Path = default_directory()
    store_size: int = -1
    """The limit of the store in bytes; 0 means no limit, -1 leaves it unchanged."""
    background: bool = True
    """Whether the rest of a pulled image is fetched in the background."""
    containerds: dict[str, Path] = msgspec.field(default_factory=lambda: {"containerd": DEFAULT_SOCKET})
    """The sockets of the served containerds, by name."""
    plain_http: frozenset[str] = frozenset()
    """Registry hosts that are accessed without TLS, in lower case."""
    metrics: Address | None = None
    log_level: str = "info"
    """One of LEVELS."""


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys outside of tables."""

    store: str = ""
    store_size: str | int = -1
    background: bool = True
    metrics: str = ""
    log_level: str = "info"


class _Containerd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of [[containerd]]."""

    socket: str
    name: str = "containerd"


class _Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of [registry.HOST]."""

    plain_http: bool = False


_KeyPath = tuple[str | int, ...]
"""The path to a table or a key: names of tables, numbers in a list."""


class _ConfigError(Exception):
    """An error at `key_path`."""

    def __init__(self, key_path: _KeyPath, what: str) -> None:
        super().__init__(what)
        self.key_path = key_path


def load_config(path: Path) -> Config:
    """Read a configuration. Raises LocalError if it cannot be read, UsageError if it is invalid."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise LocalError(f"the configuration {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_SIZE:
        raise UsageError(f"the configuration {path} is larger than {_MAX_SIZE >> 20} MiB")
    return parse_config(data, str(path))


def parse_config(data: bytes, name: str) -> Config:
    """Parse a configuration; `name` is the name of the file in messages. Raises UsageError."""
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{name} is not TOML: {error}") from error
    try:
        return _config_of(document)
    except _ConfigError as mistake:
        line = _line(text, mistake.key_path)
        raise UsageError(f"{name}{f', line {line}' if line else ''}: {mistake}") from None


def _config_of(document: dict[str, Any]) -> Config:
    lists = {key: document.pop(key) for key in _LISTS if key in document}
    settings = _table(document, _Settings, ())
    if settings.log_level not in LEVELS:
        raise _ConfigError(("log_level",), f"log_level is to be one of {', '.join(LEVELS)}")
    found = Config(
        store=_absolute(settings.store, ("store",)) if settings.store else default_directory(),
        store_size=_size(settings.store_size),
        background=settings.background,
        plain_http=_plain_http(lists.get("registry", {})),
        metrics=_address(settings.metrics) if settings.metrics else None,
        log_level=settings.log_level,
    )
    if "containerd" in lists:
        found = msgspec.structs.replace(found, containerds=_containerds(lists["containerd"]))
    return found


def _containerds(tables: object) -> dict[str, Path]:
    if not isinstance(tables, list):
        raise _ConfigError(("containerd",), "containerd is not a table of its own: write [[containerd]], once for each")
    found: dict[str, Path] = {}
    for number, table in enumerate(tables):
        key_path: _KeyPath = ("containerd", number)
        one = _table(table, _Containerd, key_path)
        socket = _absolute(one.socket, (*key_path, "socket"))
        if not _NAME.match(one.name):
            raise _ConfigError((*key_path, "name"), f"{one.name!r} is not a name for a containerd: letters, digits and -")
        if len(bytes(socket)) > _MAX_SOCKET_PATH:
            raise _ConfigError((*key_path, "socket"), f"a socket's path has at most {_MAX_SOCKET_PATH} bytes")
        if one.name in found:
            raise _ConfigError(key_path, f"two containerds are called {one.name!r}: give each a name of its own")
        if socket in found.values():
            raise _ConfigError((*key_path, "socket"), f"two containerds have the socket {socket}: each needs one of its own")
        found[one.name] = socket
    return found


def _plain_http(tables: object) -> frozenset[str]:
    if not isinstance(tables, dict):
        raise _ConfigError(("registry",), 'registry is a table: write [registry."HOST"]')
    found = set()
    for host, table in tables.items():
        one = _table(table, _Registry, ("registry", host))
        try:
            url = api_url(host, AccessOptions())
        except BadAnswer as error:
            raise _ConfigError(
                ("registry", host), f'{host!r} is not HOST or HOST:PORT: write [registry."registry.example:5000"]'
            ) from error
        if url.target != "/v2/":
            raise _ConfigError(
                ("registry", host), f"{host!r} is more than a HOST or HOST:PORT: all repositories of one are reached alike"
            )
        if one.plain_http:
            found.add(host.lower())
    return frozenset(found)


def _table(table: object, kind: type[T], key_path: _KeyPath) -> T:
    where = _LISTS[str(key_path[0])] if key_path else ""
    if not isinstance(table, dict):
        raise _ConfigError(key_path, f"{'.'.join(map(str, key_path))} is not a table: write {where}")
    unknown = [key for key in table if key not in kind.__struct_fields__]
    if unknown:
        known = [*kind.__struct_fields__, *([] if key_path else _LISTS.values())]
        raise _ConfigError(
            (*key_path, unknown[0]),
            f"there is no key {unknown[0]!r}{f' in {where}' if where else ''}; there are {', '.join(known)}",
        )
    fields = msgspec.structs.fields(kind)
    lacking = [field.name for field in fields if field.required and field.name not in table]
    if lacking:
        raise _ConfigError(key_path, f"{where} lacks {', '.join(lacking)}")
    for field in fields:
        if field.name in table:
            _check(table[field.name], field, (*key_path, field.name))
    return kind(**table)


def _check(value: object, field: FieldInfo, key_path: _KeyPath) -> None:
    """Check the type of a value. msgspec's messages are for programmers and may change, so they are not shown."""
    try:
        msgspec.convert(value, field.type)
    except msgspec.ValidationError as error:
        raise _ConfigError(key_path, f"{field.name} is to be {_EXPECTED[field.type]}") from error


def _absolute(text: str, key_path: _KeyPath) -> Path:
    if not text.startswith("/"):
        raise _ConfigError(key_path, f"{text!r} is not an absolute path: a service has no directory of its own to begin at")
    return Path(text)


def _size(value: str | int) -> int:
    if value == -1:
        return -1
    try:
        return parse_size(str(value))
    except UsageError as error:
        raise _ConfigError(("store_size",), str(error)) from error


def _address(text: str) -> Address:
    found = _ADDRESS.match(text)
    if found is None or not 0 < int(found[3]) < 1 << 16:
        raise _ConfigError(("metrics",), f"{text!r} is not HOST:PORT: write 127.0.0.1:9709, for example")
    return Address(found[1] or found[2], int(found[3]))


def _line(text: str, key_path: _KeyPath) -> int:
    """The line that defines a key: the first line up to which the text contains it. 0 if there is none."""
    lines = text.splitlines()
    for number in range(1, len(lines) + 1):
        try:
            at: Any = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue  # inside of a value of several lines
        try:
            for step in key_path:
                at = at[step]
        except (KeyError, IndexError, TypeError):
            continue
        return number
    return 0
