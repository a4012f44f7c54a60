"""The properties of this machine that a bundle depends on."""

from __future__ import annotations

import os
import resource
from typing import Final, NamedTuple

_NETWORK_FILES: Final = ("/etc/resolv.conf", "/etc/hosts")
_MAX_OPEN_FILES: Final = 1 << 20
"""Used for "unlimited" where a number is required; as in Docker."""


class Machine(NamedTuple):
    """What `make_spec` needs to know, so that the spec is a pure function."""

    hostname: str
    open_files: int
    """The hard limit of this process: a container cannot get more."""
    unified_cgroups: bool
    """Only cgroup v2 is mounted: the container gets a cgroup namespace, as in `runc spec`."""
    network_files: tuple[str, ...]
    """The existing files that host names are resolved with."""


def this_machine() -> Machine:
    """The properties of this machine and process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Machine(
        os.uname().nodename,
        _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else hard,
        os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
        tuple(name for name in _NETWORK_FILES if os.path.isfile(name)),
    )
