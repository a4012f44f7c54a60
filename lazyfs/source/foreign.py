"""Foreign blobs: at the URLs in their descriptors, for layers that may not be distributed and that registries and copies leave
out.

containerd and skopeo ask these URLs before the registry, and differ in what they do when one fails. Here the source itself is
asked first, and then the URLs in order. That accepts everything that either of them accepts, and sends no request to another
host for what the source has. The place that served a blob last is asked first the next time, and one that served wrong bytes
last.

A manifest may name any host. None gets credentials other than those in the URL itself (CVE-2020-15157); only http and https are
followed; the bytes are verified like those from the source.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from lazyfs.errors import LazyfsError, RangeIgnored, SourceError, Unreachable, without_traceback
from lazyfs.format.digest import Digest
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.url import Url, escaped, parse_url
from lazyfs.source.protocol import RangeStream

if TYPE_CHECKING:
    from lazyfs.registry.client import RegistryClient
    from lazyfs.registry.ranges import Ranges

_log = logging.getLogger(__name__)

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_MAX_PLACES: Final = 1024
"""URLs and blobs that are remembered; the oldest are dropped first."""
_SOURCE: Final = ""
"""The place that is the source itself."""


class BlobRange(NamedTuple):
    """Bytes `[start, end)` of a blob of `size` bytes; see ImageSource.open_range."""

    digest: Digest
    size: int
    start: int
    end: int
    urls: Sequence[str]
    deadline: float


class ForeignBlobs:
    """The foreign blobs of one source. Connects when the source first fails to serve a blob that has URLs."""

    def __init__(self) -> None:
        self._client: RegistryClient | None = None
        self._ranges: dict[str, Ranges] = {}
        self._served: dict[Digest, str] = {}
        """The place that served a blob last."""
        self._wrong: dict[Digest, str] = {}
        """The place that served wrong bytes of a blob."""

    @asynccontextmanager
    async def open(self, wanted: BlobRange, own: AbstractAsyncContextManager[RangeStream]) -> AsyncIterator[RangeStream]:
        """The range, from the source, for which `own` is entered, or from a URL. Entering raises like ImageSource.open_range,
        for all places together."""
        async with AsyncExitStack() as stack:
            yield await self._enter(stack, wanted, own)

    async def _enter(
        self, stack: AsyncExitStack, wanted: BlobRange, own: AbstractAsyncContextManager[RangeStream]
    ) -> RangeStream:
        failures: list[SourceError] = []
        for place in self._places(wanted):
            try:
                opened = own if place == _SOURCE else self._open(place, wanted)
                stream = await stack.enter_async_context(opened)
            except SourceError as error:
                failures.append(error)
                continue
            if failures:
                _log.info("%s: asking the next place that its descriptor names", failures[-1])
            _note(self._served, wanted.digest, place)
            return stream
        raise _of_all(failures)

    def _places(self, wanted: BlobRange) -> list[str]:
        served, wrong = self._served.get(wanted.digest), self._wrong.get(wanted.digest)
        return sorted([_SOURCE, *wanted.urls], key=lambda place: (place == wrong, place != served))

    def _open(self, place: str, wanted: BlobRange) -> AbstractAsyncContextManager[RangeStream]:
        """Raises BadAnswer if the place is not a URL."""
        # Blanks, and non-ASCII letters as UTF-8, are escaped, as in Go.
        spelled = escaped(place.encode(errors="replace").decode("latin-1"))
        url = parse_url(spelled, f"a URL of blob {wanted.digest}", may_log_in=True)
        ranges = self._ranges.get(place)
        if ranges is None:
            ranges = self._begin(url)
            _note(self._ranges, place, ranges)
        what = f"blob {wanted.digest} at {url.authority}"
        # Without a scope: no login, and no token.
        return ranges.open_url(what, url, (), wanted.digest, wanted.size, wanted.start, wanted.end, wanted.deadline)

    def _begin(self, url: Url) -> Ranges:
        # Imported late: httpx and ssl take 70 ms, and layouts rarely need them.
        from lazyfs.registry.client import RegistryClient
        from lazyfs.registry.ranges import Ranges

        # Only its connections are used: which registry it is for does not matter.
        self._client = self._client or RegistryClient(url.authority, AccessOptions())
        return Ranges(self._client)

    def distrust(self, digest: Digest) -> None:
        """See ImageSource. The place that served the blob last is asked last."""
        if digest in self._served:
            _note(self._wrong, digest, self._served[digest])
        if self._client is not None:
            for ranges in self._ranges.values():
                ranges.distrust(digest)

    async def aclose(self) -> None:
        """Close connections."""
        if self._client is not None:
            await self._client.aclose()


def _note(memory: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    if key not in memory and len(memory) >= _MAX_PLACES:
        del memory[next(iter(memory))]
    memory[key] = value


def _of_all(failures: Sequence[SourceError]) -> LazyfsError:
    """One error for all places: of the kind that leaves the caller the most options."""
    first, last = failures[0], failures[-1]
    if len(failures) == 1:
        return without_traceback(first)
    ranked = sorted(failures, key=lambda error: (not isinstance(error, RangeIgnored), not isinstance(error, Unreachable)))
    return ranked[0].reworded(f"{first.message}; {last.message}", first.hint)
