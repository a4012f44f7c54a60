"""What is in use, and therefore evicted last.

lazyfsd knows its own mounts. A portable mount is another process: it declares the parts of its image in its own temporary
directory, which disappears, or loses its lock, with the process.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lazyfs.format.digest import Digest
from lazyfs.store.directory import Directory
from lazyfs.store.store_error import store_error

_NAME = "in-use"


class InUse(NamedTuple):
    """What mounted images use, or images about to be mounted."""

    objects: Container[str] = ()
    """Names of their objects."""
    documents: Container[str] = ()
    """Digests of their manifests, configs and TOCs."""
    metadata: Container[str] = ()
    """File names of their EROFS images."""


class Either:
    """The union of two containers."""

    def __init__(self, first: Container[str], second: Container[str]) -> None:
        self._first = first
        self._second = second

    def __contains__(self, name: object) -> bool:
        return name in self._first or name in self._second


def declare(directory: Directory, objects: Iterable[str], documents: Iterable[Digest]) -> None:
    """Declare to other processes what this one has mounted, in place of its last declaration. 72 bytes a name, on disk.

    Raises StoreFull, StoreUnusable.
    """
    temporary = directory.new_temporary()
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.writelines(f"{name}\n" for part in (objects, documents) for name in part)
        os.rename(temporary, f"{directory.temporary}/{_NAME}")
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise store_error(error, f"what is mounted from the store {directory.path} cannot be noted") from error


def declared(directory: Directory) -> set[str]:
    """Object names and document digests that other living processes have declared."""
    names: set[str] = set()
    for folder in directory.others():
        with suppress(OSError):
            names.update(Path(folder, _NAME).read_text(encoding="ascii", errors="replace").split("\n"))
    return names
