"""Sends WATCHDOG=1 to systemd as long as lazyfsd answers.

A running process may still hang. So each round probes every containerd's service, through the socket that containerd itself uses, and makes
a LOOKUP through the gate's mount; both pass through trio's loop. If the messages stop, systemd kills the process and starts another, and
containers wait no longer than after a crash.

The LOOKUP is made by a process of its own, never by a thread of this one: a caller whose request was read and not answered cannot be
killed, and a process with such a thread does not exit.

A probe that cannot be made for lack of descriptors, processes or threads does not count as a failure: the event loop runs, and a restart
would not free what other processes have taken.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

import trio

from lazyfs.daemon.fdstore import FdStore

_log = logging.getLogger(__name__)

_ROUNDS: Final = 4
"""Rounds in the time that systemd allows."""
_REAP: Final = 1.0
_NAME: Final = "lazyfsd-watchdog"
"""A name that does not exist. The kernel does not cache that, and asks every time."""
_LOOK: Final = """
import os, sys
try:
    os.lstat(sys.argv[1])
except FileNotFoundError:
    sys.exit(0)
sys.exit("there is such a thing")
"""


async def feed(fds: FdStore, gate: Path, sockets: Mapping[str, Path], summary: Callable[[], Awaitable[str]]) -> None:
    """Send WATCHDOG=1 after each round in which the mount at `gate` and all `sockets` (by containerd name) have answered, together with the
    status text of `summary`, until cancelled. Returns at once if there is no watchdog."""
    if not fds.watchdog:
        return
    pause = fds.watchdog / _ROUNDS
    probes: dict[str, Callable[[], Awaitable[bool]]] = {"the gate": partial(_probe_gate, gate)}
    for name, path in sockets.items():
        probes[f"the service for {name}"] = await _service_probe(path, pause)
    while True:
        silent = set(probes)
        with trio.move_on_after(pause):
            async with trio.open_nursery() as nursery:
                for name, probe in probes.items():
                    nursery.start_soon(_run_probe, probe, name, silent)
        if silent and _is_short_of_descriptors():
            _log.warning("cannot probe %s: no descriptors are left to connect with", ", ".join(sorted(silent)))
            silent.clear()
        if silent:
            _log.warning("not reporting to the watchdog of systemd: no answer from %s", ", ".join(sorted(silent)))
        else:
            fds.notify(f"WATCHDOG=1\nSTATUS={await describe(summary)}")
        await trio.sleep(pause)


async def describe(summary: Callable[[], Awaitable[str]]) -> str:
    """The status text. A failure to produce it, for example without free descriptors, is not a failure of the service."""
    try:
        return await summary()
    except Exception as error:  # noqa: BLE001  see above
        return f"what is served cannot be counted: {error!r}"


async def _run_probe(probe: Callable[[], Awaitable[bool]], name: str, silent: set[str]) -> None:
    try:
        if not await probe():
            return
    except (OSError, RuntimeError, MemoryError) as error:  # RuntimeError: a thread cannot be started
        _log.warning("cannot probe %s: %s", name, error)
    silent.discard(name)


def _is_short_of_descriptors() -> bool:
    """Whether this process or the machine has no free descriptors."""
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError:
        return True
    return False


async def _probe_gate(gate: Path) -> bool:
    """Make one LOOKUP. Raises OSError if its process cannot be started. Cancelled: the process is killed, and exits once it is answered."""
    # -I, -S: no site-packages. That halves the time that Python takes to start.
    command = [sys.executable, "-I", "-S", "-B", "-c", _LOOK, str(gate / _NAME)]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL)
    try:
        return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            with trio.move_on_after(_REAP, shield=True):
                await process.wait()


async def _service_probe(socket: Path, deadline: float) -> Callable[[], Awaitable[bool]]:
    """A function that probes a containerd's service."""
    # Imported here: it takes 40 MB that a lazyfsd without a containerd does not need.
    probe = (await trio.to_thread.run_sync(import_module, "lazyfs.containerd.probe")).Probe(socket)

    async def ask() -> bool:
        said: str = await trio.to_thread.run_sync(probe.ask, deadline, abandon_on_cancel=True)
        return not said

    return ask
