"""Finds the mounts of an earlier lazyfsd.

The mount table shows which exist, and the state those that were detached; what they are is in the state only. If the connection of the gate
was taken over, the mounts are not affected; if it was lost, each is mounted again. Nothing here touches a mount before the gate is served.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from lazyfs.daemon.mounting import image_of
from lazyfs.daemon.mounts import Mounts
from lazyfs.daemon.overlays import Overlays
from lazyfs.daemon.state import Row, State
from lazyfs.errors import LazyfsError, MountFailed
from lazyfs.live.image import Images, LiveImage
from lazyfs.native.stack import SOURCE_PREFIX, source_of
from lazyfs.reports.steps import Step
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_MAX_PAUSE: Final = 60.0


class MountRecovery:
    """Takes over the mounts that the state lists."""

    def __init__(self, state: State, images: Images, mounts: Mounts, overlays: Overlays) -> None:
        self._state = state
        self._images = images
        self._mounts = mounts
        self._overlays = overlays
        self.is_complete = False
        """Whether all mounts of the earlier process were found. Otherwise some may exist that are not counted."""

    async def begin(self, tasks: Supervisor, *, same_gate: bool) -> None:
        """Find the mounts that the state lists. Without `same_gate` their gate is dead, and they are mounted again.

        Touches no mount; what takes time continues in `tasks`.
        """
        rows = await trio.to_thread.run_sync(self._state.rows)
        seen = {str(mounted.path): mounted for mounted in await trio.to_thread.run_sync(self._overlays.mounted)}
        latest = {row.mount.directory: row.number for row in rows}
        gone = []
        missed = False
        for row in rows:
            mounted = seen.get(row.mount.directory)
            here = (
                mounted is not None
                and mounted.mode == "native"
                and SOURCE_PREFIX + mounted.image == source_of(row.mount.image)
                and latest[row.mount.directory] == row.number
            )
            if here or (row.phase == "detached" and same_gate):
                try:
                    self._mounts.adopt(row, attached=here)
                    tasks.keep_running("revival", self._recover, row, here, same_gate, subject=row.mount.directory)
                except Exception as surprise:  # noqa: BLE001  this mount's problem: its row stays, for the next lazyfsd
                    tasks.failures.record("revival", surprise, row.mount.directory)
                    missed = True
            else:
                gone.append(row.number)
        if gone:
            _log.info("%d mounts of an earlier lazyfsd are gone", len(gone))
            await self._mounts.forget(gone)
        self.is_complete = not missed

    async def _recover(self, row: Row, attached: bool, same_gate: bool) -> None:
        """Acquire the image of an adopted mount, usually from the store. Retries until it succeeds or the mount is gone."""
        if attached and same_gate:
            await self._mounts.watch_for_unmount(row)
        pause = 1.0
        while (mount := self._mounts.live.get(row.number)) is not None:
            try:
                live = mount.live
                if live is None:
                    # Its documents are in the store, unless they were damaged.
                    live = await self._images.acquire(image_of(row.mount), "", _discard, lazy_only=False)
                    self._mounts.set_image(row.number, live)
                    continue
                if attached and not same_gate:
                    await self._remount(row, live)
                elif pause > 1.0:
                    await self._mounts.trouble(row.number, "")
            except LazyfsError as error:
                _log.warning("%s cannot fetch what is missing: %s", row.mount.directory, error)
                await self._mounts.trouble(row.number, str(error))
                await trio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE)
            else:
                return

    async def _remount(self, row: Row, live: LiveImage) -> None:
        """Mount again, because the gate is dead. Raises LazyfsError if the metadata cannot be built."""
        directory = row.mount.directory
        try:
            refusal = await self._mounts.remount(row, live)
        except MountFailed as error:
            _log.warning("cannot remount %s: %s", directory, error)
            await self._mounts.end(row.number)
            return
        if refusal:
            await self._mounts.trouble(row.number, f"missing files cannot be fetched until it is mounted again: {refusal}")
        else:
            _log.warning("remounted %s: the gate of the old mount was lost", directory)
        await self._mounts.watch_for_unmount(row)


async def _discard(_: Step) -> None:
    """No client waits for these steps."""
