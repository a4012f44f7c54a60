"""What overlays are stacked on, by name: overlays of earlier versions have the same."""

from __future__ import annotations

from pathlib import Path

from lazyfs.kernel.mountinfo import MountInfo
from lazyfs.native.data_layers import belongs_to, data_layers, objects_only, store_of

STORE = Path("/var/lib/lazyfs")


def overlay(*data: str, kind: str = "overlay") -> MountInfo:
    """A row of the kernel's table."""
    return MountInfo(Path("/mnt"), "0:50", kind, "lazyfs:x", ("ro", *(f"datadir+={path}" for path in data)))


def test_the_order_of_lookup() -> None:
    """The gate is asked after what is here, `arrived` after the gate, and the last layer has an error for every name."""
    names = [str(path.relative_to(STORE)) for path in data_layers(STORE)]
    assert names == ["objects", "gate/objects", "arrived", "gate/nowhere"]
    assert [str(path.relative_to(STORE)) for path in data_layers(STORE, record=7)] == ["gate/record-7", "arrived", "gate/nowhere"]
    assert objects_only(STORE) == (STORE / "objects",)


def test_an_overlay_is_known_by_its_store() -> None:
    """For every kind of lazyfs overlay; other overlays and other mounts have no store."""
    for data in (data_layers(STORE), data_layers(STORE, record=1)):
        mount = overlay(*map(str, data))
        assert belongs_to(mount, STORE)
        assert store_of(mount) == STORE
        assert not belongs_to(mount, Path("/var/lib/other"))
    assert not belongs_to(overlay(*map(str, data_layers(STORE)), kind="erofs"), STORE)
    assert store_of(overlay("/proc/self/fd/9", "/lower")) is None
