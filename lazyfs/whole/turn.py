"""One at a time: a layer is fetched whole by one task of one process, and the others find it here when it is their turn.

The locks are the store's claims, on the layer's digest instead of a chunk's, through an open file of their own: so that
two tasks of one process exclude each other as two processes do, and the kernel lets go of them with whoever held them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing
from typing import Final

import trio

from lazyfs.format.digest import Digest, to_raw
from lazyfs.store.claims import Claims
from lazyfs.store.store import Store

_POLL: Final = 0.05


@asynccontextmanager
async def turn(
    store: Store, digests: Iterable[Digest], waiting: Callable[[Digest], Awaitable[None]] | None = None
) -> AsyncIterator[Callable[[Digest], None]]:
    """Hold the layers `digests`; whoever holds one asks for no others. What comes back lets go of one before the end.

    Waits for as long as others fetch them; `waiting` is told for which. Cancelled: none is held.
    """
    with closing(Claims(store.directory.path / "claims")) as claims:
        # Always in the same order: nobody waits for a layer while somebody else waits for one that he holds.
        for digest in sorted(set(digests)):
            if not claims.claim(to_raw(digest)):
                if waiting is not None:
                    await waiting(digest)
                while not claims.claim(to_raw(digest)):  # noqa: ASYNC110  another process sets no event of ours
                    await trio.sleep(_POLL)
        yield lambda digest: claims.release(to_raw(digest))
