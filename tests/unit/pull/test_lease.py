"""When a failed pull leaves its lease for the next one, and how a dead pull is recognised."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
import trio

from lazyfs.errors import ContainerdFailed, DigestMismatch, InvalidManifest, LazyfsError, NotFound, Unreachable
from lazyfs.pull.lease import _is_alive, _liveness_name, _resumable


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (Unreachable("away"), True),
        (NotFound("gone"), True),
        (KeyboardInterrupt(), True),
        (ContainerdFailed("restarted", status="UNAVAILABLE"), True),
        (ContainerdFailed("no space left on device", status="UNKNOWN"), False),
        (DigestMismatch("lies"), False),
        (InvalidManifest("nonsense"), False),
        (LazyfsError("else"), False),
    ],
)
def test_what_the_next_pull_could_go_on_from_is_kept(error: BaseException, kept: bool) -> None:
    """Where another try may succeed; what fills a disk or can never work goes at once. In a group as alone."""
    assert _resumable(error) is kept
    assert _resumable(BaseExceptionGroup("", [BaseExceptionGroup("", [error])])) is kept


async def test_a_cancelled_pull_is_resumable() -> None:
    """Its lease stays."""
    kept = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            kept.append(_resumable(cancelled))
            raise
    assert kept == [True]


def test_a_pull_lives_as_long_as_its_process() -> None:
    """By a name that the kernel frees; looking for it does not take it away."""
    with closing(socket.socket(socket.AF_UNIX)) as liveness:
        assert not _is_alive("lazyfs-pull-test")
        liveness.bind(_liveness_name("lazyfs-pull-test"))
        assert _is_alive("lazyfs-pull-test") and _is_alive("lazyfs-pull-test")
    assert not _is_alive("lazyfs-pull-test")
