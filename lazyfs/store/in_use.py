"""What is in use, and so the last to make room.

lazyfsd knows what it has mounted. A portable mount is another process: it declares what its image consists of in its own
folder of temporary files, which is gone, or without its lock, when the process is.
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
    """Of the images that are mounted, or about to be."""

    objects: Container[str] = ()
    """Names of their objects."""
    documents: Container[str] = ()
    """Digests of their manifests, configs and TOCs."""
    metadata: Container[str] = ()
    """File names of their EROFS images."""


class Either:
    """What one of two has."""

    def __init__(self, first: Container[str], second: Container[str]) -> None:
        self._first = first
        self._second = second

    def __contains__(self, name: object) -> bool:
        return name in self._first or name in self._second


def declare(directory: Directory, objects: Iterable[str], documents: Iterable[Digest]) -> None:
    """Tell other processes what this one has mounted, instead of what it told before: 72 bytes a name, on disk.

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
    """Object names and digests of documents that other living processes have declared."""
    names: set[str] = set()
    for folder in directory.others():
        with suppress(OSError):
            names.update(Path(folder, _NAME).read_text(encoding="ascii", errors="replace").split("\n"))
    return names
