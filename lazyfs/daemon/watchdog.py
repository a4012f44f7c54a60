"""Tells systemd that lazyfsd serves, as long as it does.

A process that runs is not one that answers. So a sign of life is what came back: a call of each containerd's service, through the
socket that containerd itself uses, and a LOOKUP through the gate's mount, each through trio's loop. When the signs end, systemd
ends the process and starts another, and containers wait no longer than for a crash.

The LOOKUP is made by a process of its own, never by a thread of this one: who waits for an answer that was read and not given
cannot be killed, and with a thread of it no process ends.

What cannot be asked, because a descriptor, a process or a thread is missing, is not taken for dead: this loop turns, and another start
would not give back what other processes have taken.
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
from lazyfs.errors import LazyfsError

_log = logging.getLogger(__name__)

_ROUNDS: Final = 4
"""How many there are in the time that systemd allows."""
_REAP: Final = 1.0
_NAME: Final = "lazyfsd-watchdog"
"""Of nothing that there is. The kernel does not remember that, and asks every time."""
_LOOK: Final = """
import os, sys
try:
    os.lstat(sys.argv[1])
except FileNotFoundError:
    sys.exit(0)
sys.exit("there is such a thing")
"""


async def feed(fds: FdStore, gate: Path, sockets: Mapping[str, Path], describe: Callable[[], Awaitable[str]]) -> None:
    """Until cancelled: say WATCHDOG=1 after each round in which the mount at `gate` and all `sockets`, by containerds' names, have
    answered, and what `describe` tells as the service's status. Returns at once where nobody watches."""
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
            fds.notify(f"WATCHDOG=1\nSTATUS={await _described(describe)}")
        await trio.sleep(pause)


async def _described(describe: Callable[[], Awaitable[str]]) -> str:
    """One that answers is alive, whether or not there is a descriptor left to count its mounts with."""
    try:
        return await describe()
    except (LazyfsError, OSError) as error:
        return f"what is served cannot be counted: {error}"


async def _run_probe(probe: Callable[[], Awaitable[bool]], name: str, silent: set[str]) -> None:
    try:
        if not await probe():
            return
    except (OSError, RuntimeError, MemoryError) as error:  # RuntimeError: a thread cannot be started
        _log.warning("cannot probe %s: %s", name, error)
    silent.discard(name)


def _is_short_of_descriptors() -> bool:
    """Whether nothing can be opened now, for want of this process's descriptors or of the machine's."""
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError:
        return True
    return False


async def _probe_gate(gate: Path) -> bool:
    """One LOOKUP. Raises OSError: its process cannot be started. Cancelled: its process is killed, and ends when it is answered."""
    # -I, -S: nothing but Python itself is read, which is half of its start.
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
    """Who asks a containerd's service whether it answers."""
    # 40 MB, that a lazyfsd without a containerd need not have.
    probe = (await trio.to_thread.run_sync(import_module, "lazyfs.containerd.probe")).Probe(socket)

    async def ask() -> bool:
        said: str = await trio.to_thread.run_sync(probe.ask, deadline, abandon_on_cancel=True)
        return not said

    return ask
