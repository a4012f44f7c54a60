"""Checks the limit of open files before anything is begun.

Source: getrlimit(2), RLIMIT_NOFILE.
"""

from __future__ import annotations

import resource
from typing import Final

from lazyfs.errors import LocalError

LEAST: Final = 256
"""Descriptors: the store's, 64 callers' (gate/caller.py), 48 connections and their successors', and some for each thread."""


def require_open_files(who: str, least: int = LEAST) -> None:
    """Ensure that this process may have `least` files open; raises its soft limit as far as the hard one allows.

    Raises LocalError, with `who` as the subject.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= least:
        return
    if hard != resource.RLIM_INFINITY and hard < least:
        raise LocalError(
            f"{who} may have no more than {hard} files open at a time, and needs {least}",
            hint=f"Raise the limit: `ulimit -n {2 * least}` in the shell, or LimitNOFILE= in a unit of systemd",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
