"""What of this machine goes into a bundle."""

from __future__ import annotations

import os
import resource
from typing import Final, NamedTuple

_NETWORK_FILES: Final = ("/etc/resolv.conf", "/etc/hosts")
_MAX_OPEN_FILES: Final = 1 << 20
"""What stands for "without bound" where a number has to be named; as much as Docker gives."""


class Machine(NamedTuple):
    """The facts, so that a bundle is a pure function of them."""

    hostname: str
    open_files: int
    """The most that this process may allow a container: its own hard limit."""
    unified_cgroups: bool
    """cgroup v2 alone: a container gets a namespace of its own there, as `runc spec` has it."""
    network_files: tuple[str, ...]
    """Those by which names are resolved, as far as they are there."""


def this_machine() -> Machine:
    """The machine and process that this is called in."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Machine(
        os.uname().nodename,
        _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else hard,
        os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
        tuple(name for name in _NETWORK_FILES if os.path.isfile(name)),
    )
