"""Checks containerd's configuration: whether it has the snapshotter, and passes it the labels that it needs.

containerd 1.x (versions 1 and 2 of its configuration) and 2.x (version 3; it also reads the older ones) have the same settings in
different sections. Sources: containerd, docs/cri/config.md, docs/transfer.md, docs/PLUGINS.md; core/transfer's unpack_config.
"""

from __future__ import annotations

import glob
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from lazyfs.doctor.finding import Finding, degraded, missing, ok

_CRI_1: Final = "io.containerd.grpc.v1.cri"
_CRI_2: Final = "io.containerd.cri.v1.images"
_TRANSFER: Final = "io.containerd.transfer.v1.local"
_SNIPPET: Final = "systemd/containerd/containerd-{}.toml has all that it takes"
_DEPTH: Final = 8
Table = dict[str, Any]


def examine_containerd(path: Path, sockets: Mapping[str, Path]) -> Iterator[Finding]:
    """Check the configuration at `path` of a containerd that should use one of `sockets`. Blocking."""
    major = installed_major()
    if not path.exists():
        if major:
            yield missing("containerd", f"there is no {path}: containerd has no snapshotter but its own", _SNIPPET.format(major))
        else:
            yield degraded("containerd", f"there is neither {path} nor a containerd: nothing to check")
        return
    try:
        config = read_merged(path, major or 2)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        yield missing("containerd", f"{path} cannot be read: {error}", "containerd does not start with it either")
        return
    major = major or (2 if config.get("version", 1) >= 3 else 1)
    names = _names(config, sockets)
    if not names:
        places = " or ".join(str(socket) for socket in sockets.values())
        yield missing("containerd", f"{path} has no [proxy_plugins.NAME] with the address {places}", _SNIPPET.format(major))
        return
    yield from _entries(names, path)
    yield from _clients(config, next(iter(names)), major)


def installed_major() -> int:
    """The major version of the installed containerd, 1 or 2; 0 if there is none, or it is unknown."""
    if shutil.which("containerd") is None:
        return 0
    said = subprocess.run(["containerd", "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
    found = re.search(rb" v?(\d+)\.\d+\.\d+", said)
    return int(found[1]) if found else 0


def read_merged(path: Path, major: int, depth: int = 0) -> Table:
    """A configuration with its imports, merged as in containerd (mergeConfig): 1.x replaces a plugin's section as a whole.

    Raises OSError, TOMLDecodeError, UnicodeDecodeError; RecursionError for circular imports.
    """
    if depth > _DEPTH:
        raise RecursionError(f"{path} imports too deeply")
    with path.open("rb") as file:
        merged = tomllib.load(file)
    for pattern in merged.pop("imports", []):
        for name in sorted(glob.glob(str(path.parent / pattern))):  # an absolute pattern stays absolute
            imported = read_merged(Path(name), major, depth + 1)
            for whole in ("proxy_plugins", *(["plugins"] if major < 2 else [])):
                merged[whole] = {**_at(merged, whole), **imported.pop(whole, {})}
            _merge(merged, imported)
    return merged


def _merge(into: Table, more: Table) -> None:
    for key, value in more.items():
        there = into.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _merge(there, value)
        elif isinstance(value, list) and isinstance(there, list):
            there += [each for each in value if each not in there]
        else:
            into[key] = value


def _names(config: Table, sockets: Mapping[str, Path]) -> dict[str, Table]:
    """The proxy plugins that use one of our sockets, by name."""
    ours = {str(socket) for socket in sockets.values()}
    entries = _at(config, "proxy_plugins")
    return {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, dict)
        and entry.get("type") == "snapshot"
        and str(entry.get("address", "")).removeprefix("unix://") in ours
    }


def _entries(names: dict[str, Table], path: Path) -> Iterator[Finding]:
    addresses = [str(entry["address"]) for entry in names.values()]
    if len(set(addresses)) < len(addresses):
        yield missing(
            "containerd",
            f"{path} gives one socket several names ({', '.join(names)}): under each, containerd takes the others' images for garbage",
            "Leave one name for each socket",
        )
    else:
        yield ok("containerd", f"{path} has the snapshotter as {', '.join(names)}")


def _clients(config: Table, name: str, major: int) -> Iterator[Finding]:
    disabled = config.get("disabled_plugins", [])
    if _CRI_1 in disabled or "cri" in disabled or _CRI_2 in disabled:
        yield degraded("cri", "containerd's CRI is disabled: Kubernetes cannot use it")
    elif major == 1:
        yield from _cri_1(config, name)
    else:
        yield from _cri_2(config, name)
    if major >= 2:
        yield from _transfer(config, name)


def _cri_1(config: Table, name: str) -> Iterator[Finding]:
    section = _old_cri(config)
    used = section.get("snapshotter", "overlayfs")
    if used != name:
        yield degraded(
            "cri", f"Kubernetes' images go to {used}, not to {name}", f'snapshotter = "{name}" in [plugins."{_CRI_1}".containerd]'
        )
    elif section.get("disable_snapshot_annotations", True):
        yield missing(
            "cri",
            f"Kubernetes' images go to {name}, which does not get their annotations: none is lazy",
            f'disable_snapshot_annotations = false in [plugins."{_CRI_1}".containerd]',
        )
    else:
        yield ok("cri", f"Kubernetes' images go to {name}")


def _cri_2(config: Table, name: str) -> Iterator[Finding]:
    section = _at(config, "plugins", _CRI_2) or _old_cri(config)
    used = section.get("snapshotter", "overlayfs")
    if used != name:
        yield degraded(
            "cri", f"Kubernetes' images go to {used}, not to {name}", f'snapshotter = "{name}" in [plugins."{_CRI_2}"]'
        )
    elif not section.get("disable_snapshot_annotations", True) or section.get("use_local_image_pull", False):
        yield missing(
            "cri",
            "CRI pulls images by itself, past the transfer service",
            f'Take disable_snapshot_annotations and use_local_image_pull out of [plugins."{_CRI_2}"]',
        )
    else:
        yield ok("cri", f"Kubernetes' images go to {name}")


def _transfer(config: Table, name: str) -> Iterator[Finding]:
    exports = _at(config, "proxy_plugins", name, "exports")
    if exports.get("enable_remote_snapshot_annotations") != "true":
        yield missing(
            "transfer",
            f"the transfer service does not pass annotations to {name}: nothing is lazy",
            f'enable_remote_snapshot_annotations = "true" in [proxy_plugins.{name}.exports]',
        )
    elif not any(unpack.get("snapshotter") == name for unpack in _unpack_config(config)):
        yield missing(
            "transfer",
            f"the transfer service does not unpack into {name}: pulls into it fail",
            f'an entry with snapshotter = "{name}" in [[plugins."{_TRANSFER}".unpack_config]]',
        )
    else:
        yield ok("transfer", f"the transfer service unpacks into {name}, and passes annotations to it")
    if "root" not in exports:
        yield degraded(
            "exports",
            "kubelet cannot see the space that images take",
            f'root = "/var/lib/lazyfs" in [proxy_plugins.{name}.exports]',
        )


def _unpack_config(config: Table) -> list[Table]:
    found = _at(config, "plugins", _TRANSFER).get("unpack_config", [])
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _old_cri(config: Table) -> Table:
    return _at(config, "plugins", _CRI_1, "containerd") or _at(config, "plugins", "cri", "containerd")


def _at(table: Table, *way: str) -> Table:
    """The table at the path `way`; an empty one if there is none."""
    for step in way:
        found = table.get(step, {})
        table = found if isinstance(found, dict) else {}
    return table
