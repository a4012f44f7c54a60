"""The daemon clears up behind containers that were killed, also after a moment without descriptors or room."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from lazyfs.daemon import service
from lazyfs.daemon.service import Service
from lazyfs.tasks import Supervisor


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC])
async def test_the_sweep_is_tried_again(
    number: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    """It ends neither lazyfsd nor itself."""
    expect_log("removal of dead containers")
    left = tmp_path / "containers" / ("lazyfs-" + "0" * 12)
    left.mkdir(parents=True)
    (tmp_path / "containers" / f"{left.name}.lock").touch()
    right, failures = service.sweep, [OSError(number, "for a moment")] * 2

    def failing(store: Path, unmount: Callable[[Path], None]) -> list[str]:
        if failures:
            raise failures.pop()
        return right(store, unmount)

    monkeypatch.setattr(service, "sweep", failing)
    monkeypatch.setattr(service, "_unmount_root", lambda _: None)
    daemon = cast(Any, SimpleNamespace(_options=SimpleNamespace(store=tmp_path)))
    async with trio.open_nursery() as nursery:
        Supervisor(nursery).keep_running("removal of dead containers", partial(Service.sweep_containers, daemon))
        for _ in range(600):
            await trio.sleep(1)
            if not left.exists():
                break
        assert not failures and not left.exists()
        nursery.cancel_scope.cancel()
