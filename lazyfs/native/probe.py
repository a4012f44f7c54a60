"""Finds out whether this machine can mount natively: by doing it with one file, never from version numbers.

The trial runs in a mount namespace of its own, which ends with its thread: no other process sees its mounts, and none survives, whatever
happens to this process. Its files are in the store, because the store's file system decides whether images can be mounted directly or
only through loop devices, and whether a file can have two names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from lazyfs.erofs.image import write_image
from lazyfs.format.entry import Chunk, Entry
from lazyfs.kernel.mounting import Context, attach
from lazyfs.kernel.namespace import in_own_namespace
from lazyfs.native.layers import mount_image
from lazyfs.native.stack import mount_stack, open_stack
from lazyfs.store.content import content_of
from lazyfs.store.directory import TRIAL_PREFIX

_CONTENT: Final = b"what a native mount shows\n"
_CHUNK: Final = Chunk(0, len(_CONTENT), hashlib.sha256(_CONTENT).digest(), 0, 0, 1)
_OBJECT: Final = content_of([_CHUNK]).name
_FILE: Final = Entry(b"file", "reg", mode=0o644, size=len(_CONTENT), chunks=(_CHUNK,))
_STALE_AGE: Final = 60.0
"""Seconds after which a trial's folder must be a leftover of a killed process."""


class ProbeResult(NamedTuple):
    """The result of the trial."""

    native: bool
    file_backed: bool
    """Whether EROFS images can be mounted directly, without loop devices; False if `native` is."""
    reason: str
    """Why this machine cannot mount natively; empty if it can."""


def probe(store: Path) -> ProbeResult:
    """Try a native mount in `store`, which must exist. Blocking, some ms. Leaves no mount, loop device or file."""
    if os.geteuid() != 0:
        return _refused("only root can mount natively")
    try:
        with _folder(store) as folder:
            return in_own_namespace(lambda: _run_trial(folder))
    except OSError as error:
        if error.errno == errno.EPERM:
            return _refused("this process may not mount (no CAP_SYS_ADMIN, or a service's RestrictNamespaces)")
        return _refused(f"a trial mount in {store} failed: {_describe(error)}")


def _run_trial(folder: Path) -> ProbeResult:
    """The trial. Known causes of failure get a message of their own."""
    objects, arrived, root, at, image = (folder / name for name in ("objects", "arrived", "root", "at", "image"))
    for directory in (objects, arrived, root, at):
        directory.mkdir()
    (objects / _OBJECT).write_bytes(_CONTENT)
    with image.open("wb") as file:
        write_image([_FILE], file)
    try:
        (arrived / _OBJECT).hardlink_to(objects / _OBJECT)
    except OSError as error:
        return _refused(f"files in {folder.parent} cannot have two names (hard links): {_describe(error)}")
    for kind, option in (("erofs", ""), ("overlay", "datadir+")):
        try:
            with Context(kind) as context:
                if option:
                    context.set(option, str(arrived))
        except OSError as error:
            known = _UNKNOWN.get((kind, error.errno or 0))
            if known is None:
                raise
            return _refused(known)
    file_backed = True
    try:
        fd = mount_image(image)
    except OSError as direct:
        if direct.errno == errno.EPERM:
            raise
        file_backed = False
        try:
            fd = mount_image(image, through_loop=True)
        except OSError as error:
            return _refused(
                f"an EROFS image in {folder.parent} mounts neither directly: {_describe(direct)}; nor through a loop device: {_describe(error)}"
            )
    try:
        attach(fd, root)
    finally:
        os.close(fd)
    mount_stack(at, open_stack([root], [objects, arrived], source="lazyfs:probe"))
    (objects / _OBJECT).unlink()  # a miss depends on the last data layer
    if (at / "file").read_bytes() != _CONTENT:
        return _refused("a file in a trial mount did not show its content")
    return ProbeResult(True, file_backed, "")


_UNKNOWN: Final = {
    ("erofs", errno.ENODEV): "this kernel has no EROFS",
    ("erofs", errno.ENOSYS): "this kernel has no fsopen",
    ("overlay", errno.ENODEV): "this kernel has no overlayfs",
    ("overlay", errno.EINVAL): "this kernel's overlayfs takes no data-only layers (datadir+)",
}


@contextmanager
def _folder(store: Path) -> Iterator[Path]:
    for other in store.glob(f"{TRIAL_PREFIX}*"):
        with suppress(FileNotFoundError):  # its owner has just removed it
            if other.stat().st_mtime < time.time() - _STALE_AGE:
                shutil.rmtree(other, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=TRIAL_PREFIX, dir=store, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _refused(reason: str) -> ProbeResult:
    return ProbeResult(native=False, file_backed=False, reason=reason)


def _describe(error: OSError) -> str:
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
