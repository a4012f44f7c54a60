"""The mounts of a daemon in virtual time: its database is real, the kernel and the images are a test's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import trio

from lazyfs.daemon.inode_warm_up import InodeWarmUp
from lazyfs.daemon.lifetime import Lifetime
from lazyfs.daemon.mounting import MountHandler
from lazyfs.daemon.mounts import Mounts
from lazyfs.daemon.overlays import Overlays
from lazyfs.daemon.recording import Recordings
from lazyfs.daemon.recovery import MountRecovery
from lazyfs.daemon.state import MountRecord, Row, State
from lazyfs.errors import LazyfsError, MountFailed
from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import Descriptor, ImageConfig, Manifest
from lazyfs.gate.catalog import Catalog
from lazyfs.image.image import Image
from lazyfs.image.layer import Layer
from lazyfs.kernel.unmount_events import UnmountEvents
from lazyfs.live.image import Images, LiveImage
from lazyfs.live.uses import Uses
from lazyfs.mount.table import LazyfsMount
from lazyfs.native.probe import ProbeResult
from lazyfs.reports.orders import MountOrder
from lazyfs.reports.steps import Step
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

DIGEST = digest_of(b"")
BLOB = Descriptor("", DIGEST, 0, {}, None, {})
IMAGE = Image(f"registry.test/image@{DIGEST}", DIGEST, Manifest("", BLOB, (BLOB,), {}, {}, b""), ImageConfig((), "", "", ""))
LAYER = Layer(BLOB, DIGEST, 1, ())
ROOT = "/mnt"
REFERENCE = "docker://registry.test/image:v1"


class Kernel(Overlays):
    """Mounts that are a list. `done` is what was asked of it, in order."""

    def __init__(self) -> None:
        self.table: list[str] = []
        """Directories, the latest last."""
        self.done: list[str] = []
        self.errors: dict[str, LazyfsError | OSError] = {}
        """By the name of the call that raises it, once."""
        self.on_make: Callable[[], object] = lambda: None
        """Called when an overlay has been made."""
        self.busy = False
        """Whether somebody is in each mount: it can be detached, and nothing else."""
        self.verdict = ProbeResult(True, True, "")
        self.unmount_events = ScriptedUnmountEvents(self)

    def _note(self, call: str, about: object = "") -> None:
        self.done.append(f"{call} {about}".strip())
        if call in self.errors:
            raise self.errors.pop(call)

    def mounted(self) -> list[LazyfsMount]:
        if "mounted" in self.errors:
            raise self.errors.pop("mounted")
        return [LazyfsMount(Path(each), "0:1", IMAGE.name, 0, "native") for each in self.table]

    def find(self, directory: Path) -> LazyfsMount | None:
        return next((each for each in self.mounted() if each.path == directory), None)

    def probe(self) -> ProbeResult:
        self._note("try out")
        return self.verdict

    def metadata(self, layers: object) -> tuple[Path, ...]:
        self._note("metadata")
        return (Path("/metadata"),)

    def make(self, row: Row, images: tuple[Path, ...]) -> bool:
        self._note("make", row.mount.directory)
        self.table.append(row.mount.directory)
        self.on_make()
        return True

    def open_metadata(self, images: tuple[Path, ...]) -> int:
        self._note("open names")
        return 0

    def unmount(self, directory: Path, *, lazy: bool) -> None:
        self._note("detach" if lazy else "unmount", directory)
        if str(directory) not in self.table:
            raise MountFailed(f"{directory} is not a mount")
        if self.busy and not lazy:
            raise MountFailed(f"{directory} is busy")
        self.table.remove(str(directory))
        if not self.busy:
            self.unmount_events.end(str(directory))

    def clean_up(self, row: Row) -> None:
        self._note("clear up", row.mount.directory)

    def unmount_unused_layers(self) -> None:
        self._note("drop layers")


class ScriptedUnmountEvents(UnmountEvents):
    """Unmount events that a test, or the kernel above, causes."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._readable = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watches: list[str] = []
        self._ended: list[int] = []

    def fileno(self) -> int:
        return self._readable

    def add(self, root: str) -> int:
        self._kernel._note("watch", root)
        self._watches.append(root)
        return len(self._watches) - 1

    def end(self, root: str) -> None:
        """The last user of the mount at `root` has gone. Without a watch there is no event."""
        if root in self._watches:
            self._ended.append(len(self._watches) - 1 - self._watches[::-1].index(root))
            os.eventfd_write(self._readable, 1)

    def ended(self) -> list[int]:
        os.eventfd_read(self._readable)
        found, self._ended = self._ended, []
        return found

    def close(self) -> None:
        os.close(self._readable)


class ScriptedImage:
    """A live image as its mounts see it."""

    def __init__(self) -> None:
        self.image = IMAGE
        self.layers: tuple[Layer, ...] = (LAYER,)
        self.uses = Uses()
        self.uses.change(+1)
        self.given_up = 0

    def leave(self) -> None:
        self.uses.change(-1)

    def give_up(self) -> None:
        self.given_up += 1


class ScriptedImages:
    """Images that become live when a test opens `gate`, or fail with the next of `errors`."""

    def __init__(self) -> None:
        self.live: dict[str, LiveImage] = {}
        self.made: list[ScriptedImage] = []
        self.errors: list[LazyfsError] = []
        self.gate = trio.Event()
        self.gate.set()
        self.asked: list[tuple[object, str, bool]] = []
        """What was acquired, with which password, and whether lazily only."""

    async def acquire(self, wanted: object, creds: str, notify: Callable[[Step], object], *, lazy_only: bool) -> ScriptedImage:
        self.asked.append((wanted, creds, lazy_only))
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.made.append(ScriptedImage())
        return self.made[-1]


class ScriptedWarmUp(InodeWarmUp):
    """Warm-ups that are only counted."""

    def __init__(self) -> None:
        self.begun = 0

    def begin(self, names: int, directory: str) -> None:
        self.begun += 1


class FullState(State):
    """A database whose disk may be full."""

    full = False

    def mark(self, *arguments: Any) -> None:
        if self.full:
            raise MountFailed("no space left on device")
        super().mark(*arguments)

    def remove(self, *arguments: Any) -> None:
        if self.full:
            raise MountFailed("no space left on device")
        super().remove(*arguments)


class Setting:
    """All of it, as lazyfsd puts it together."""

    def __init__(self, store: Store, state: State) -> None:
        self.kernel = Kernel()
        self.images = ScriptedImages()
        self.state = state
        self.store = store
        self.catalog = Catalog()
        self.catalog.begin()
        self.recordings = Recordings(store)
        self.warm_up = ScriptedWarmUp()
        self.lifetime = Lifetime(service=False)
        images = cast(Images, self.images)
        self.mounts = Mounts(
            self.kernel, state, self.catalog, images, self.recordings, self.kernel.unmount_events, self.warm_up, self.lifetime
        )
        self.mounting = MountHandler(store, images, self.mounts, self.kernel)
        self.recovery = MountRecovery(state, images, self.mounts, self.kernel)
        self.steps: list[Step] = []

    async def notify(self, step: Step) -> None:
        """The steps that the client of an order gets."""
        self.steps.append(step)

    def watch(self, nursery: trio.Nursery) -> None:
        """Hear of ends, as lazyfsd does."""
        nursery.start_soon(self.mounts.handle_unmounts, Supervisor(nursery))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Directory and phase of what the database knows."""
        return [(row.mount.directory, row.phase) for row in self.state.rows()]

    @property
    def remains(self) -> tuple[int, int, int, int]:
        """Mounts of the kernel, rows, live mounts, uses of the daemon: all 0 where nothing is left."""
        return len(self.kernel.table), len(self.rows), len(self.mounts.live), self.lifetime.uses.count


@contextmanager
def setting(folder: Path) -> Iterator[Setting]:
    with Store.open(folder / "store") as store, FullState(folder / "store") as state:
        made = Setting(store, state)
        try:
            yield made
        finally:
            made.kernel.unmount_events.close()


_MOUNT = MountRecord(ROOT, "ticket", IMAGE.name, REFERENCE, "linux/amd64", False, "on", "", False, "")


def mount_of(directory: str = ROOT, **changes: Any) -> MountRecord:
    return msgspec.structs.replace(_MOUNT, directory=directory, **changes)


def order_of(directory: str = ROOT, **changes: Any) -> MountOrder:
    order = MountOrder(f"ticket of {directory}", REFERENCE, directory, "linux/amd64")
    return msgspec.structs.replace(order, **changes)


def full(call: str) -> OSError:
    """What the kernel says where it has no more of something."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call)
