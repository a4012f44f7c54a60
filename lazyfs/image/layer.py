"""A layer: its descriptor and its verified TOC.

The trust chain goes manifest -> an annotation of the layer -> TOC -> chunk digests. The layer's dialect (format/dialect.py) says which
annotation, and where the TOC is; what it reads for that (a footer) is not part of the chain: a false one leads to a digest mismatch.

A layer without such a TOC is fetched whole (lazyfs/eager); lazyfs then writes a TOC for it, so that all other code sees one kind of
layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import trio

from lazyfs.errors import InvalidInput, InvalidToc, LazyfsError, without_traceback
from lazyfs.format.bounds import ImageBounds
from lazyfs.format.budget import parsing_budget, toc_memory
from lazyfs.format.dialect import Dialect, TocClaim
from lazyfs.format.dialects import claim_of
from lazyfs.format.digest import Digest, check
from lazyfs.format.entry import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, Entry
from lazyfs.format.estargz import ESTARGZ
from lazyfs.format.manifest import Descriptor, check_layer_type
from lazyfs.format.whiteout import LeftOut
from lazyfs.image.keeping import keep
from lazyfs.image.toc_member import TocMember, fetch_toc_member
from lazyfs.source.protocol import ImageSource

if TYPE_CHECKING:
    from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

_UNKNOWN: Final = 16 << 20
"""Bytes to assume for a TOC whose size was not noted."""


class Whole(NamedTuple):
    """What is needed to fetch a layer whole."""

    reason: str
    """Why it is not lazy, as the end of a sentence that begins with the layer."""
    diff_id: Digest


class Layer(NamedTuple):
    """A layer that can be mounted."""

    descriptor: Descriptor
    toc_digest: Digest
    toc_offset: int
    """Where the chunks end: in the blob, or for an eager layer in the sequence of its files."""
    entries: tuple[Entry, ...]
    whole: Whole | None = None
    """Set for an eager layer: its chunks cannot be fetched on their own."""
    note: str = ""
    """What a full pull would show and this layer does not, in words; empty if nothing."""
    dialect: Dialect = ESTARGZ

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def reason(self) -> str:
        """Why the layer is not lazy; empty if it is."""
        return self.whole.reason if self.whole else ""

    def without_entries(self) -> Self:
        """The layer for holders that do not need its entries, which are nearly all of its memory. Its TOC is in the store."""
        return self._replace(entries=())

    @property
    def prefetch_end(self) -> int:
        """Blob offset of the end of the files to prefetch; 0 without a landmark."""
        for entry in self.entries:
            if entry.name == PREFETCH_LANDMARK and entry.chunks:
                return entry.chunks[0].member
        return 0

    @property
    def landmark(self) -> str:
        """`prefetch`, `none` (the author has nothing to prefetch) or `absent`."""
        names = {entry.name for entry in self.entries}
        return "prefetch" if PREFETCH_LANDMARK in names else "none" if NO_PREFETCH_LANDMARK in names else "absent"


class Toc(NamedTuple):
    """A layer's TOC, verified but not yet parsed."""

    descriptor: Descriptor
    claim: TocClaim
    offset: int
    """Where the chunks end in the blob."""
    arrived: int
    """Compressed bytes of it that arrived."""
    data: bytes | bytearray
    """The dialect's document."""

    def layer(self, *, accepted: bool = False, image: ImageBounds | None = None) -> Layer:
        """Parse it, at 7 µs an entry. Blocking, in a trio thread, which stops when its caller is cancelled. Raises InvalidToc."""
        left_out = LeftOut()
        dialect, digest = self.claim
        entries = dialect.entries(
            self.data,
            self.offset,
            _named(self.descriptor),
            left_out,
            arrived=self.arrived,
            accepted=accepted,
            check_cancelled=trio.from_thread.check_cancelled,
            image=image,
        )
        return Layer(self.descriptor, digest, self.offset, entries, dialect=dialect, note=left_out.note)


async def load_layer(
    source: ImageSource,
    store: Store | None,
    descriptor: Descriptor,
    *,
    accepted: bool = False,
    image: ImageBounds | None = None,
    in_store: Callable[[Toc], None] | None = None,
) -> Layer:
    """The layer of `descriptor`. Its TOC comes from the store, or from the source with one range request, seldom two.

    `accepted`: an earlier version may have mounted the layer, so bounds that are new are not applied (format/toc.py). `image` is the
    account of its image, for the bound of all layers together. `in_store` is called when the TOC is
    in the store, before it is parsed, so that it can be read there at the same time. A TOC that is refused is removed again.

    Raises NotLazy with the reason if the layer cannot be lazy, RangeIgnored if only this source prevents it;
    InvalidManifest, InvalidToc, DigestMismatch, SourceError. Cancelled: the TOC may be in the store.
    """
    what = _named(descriptor)
    check_layer_type(descriptor)  # first: a blob that is not an image layer would not become one by a conversion
    # The media type's compression is ignored: if the TOC has the manifest's digest, the dialect is right.
    claim = claim_of(descriptor.annotations, what)

    async def parsed(memory: int, read: Callable[[], Toc | None]) -> Layer | None:
        async with parsing_budget().hold(memory):
            toc = await trio.to_thread.run_sync(read)
            if toc is None:
                return None
            if in_store is not None:
                in_store(toc)
            try:
                return await trio.to_thread.run_sync(partial(toc.layer, accepted=accepted, image=image))
            except LazyfsError as error:
                if is_new and store is not None and isinstance(error, InvalidToc):
                    await trio.to_thread.run_sync(store.documents.drop, claim.digest)
                raise without_traceback(error) from None  # before the memory is freed

    is_new = False  # the TOC is new in the store, so no mount accepted by an earlier version needs it
    note = _note(source.authority, descriptor, claim.dialect)
    hint = await trio.to_thread.run_sync(_hint, store, note, descriptor) if store else None
    if store is not None and hint is not None:
        known = await parsed(toc_memory(hint.json_size, hint.arrived), partial(_recall, store, descriptor, claim, hint))
        if known is not None:
            return known
    first = claim.dialect.first_range(descriptor.size, what)
    folder = store.directory.temporary if store else None
    verified = False

    def accept(member: TocMember) -> Toc:
        nonlocal verified, is_new
        is_new = store is not None and not store.documents.has(claim.digest)
        toc = _accept(store, note, descriptor, claim, member)
        verified = True
        return toc

    async def fetched() -> Layer:
        async with fetch_toc_member(source, descriptor, claim.dialect, first, folder) as member:
            layer = await parsed(toc_memory(member.json_size, member.size), partial(accept, member))
            assert layer is not None
            return layer

    try:
        return await fetched()
    except InvalidInput as error:
        if verified:
            raise
        # These bytes are not the TOC that the manifest names: they may have been changed in transit.
        _log.info("%s: %s: fetching its TOC once more", source.name, error)
        source.distrust(descriptor.digest)
    return await fetched()


class _Hint(NamedTuple):
    """What the store has noted about a TOC."""

    offset: int
    arrived: int
    json_size: int


def _accept(store: Store | None, note: str, descriptor: Descriptor, claim: TocClaim, member: TocMember) -> Toc:
    data = member.document()
    check(data, claim.digest, f"the TOC of {_named(descriptor)}")
    if store is not None:
        keep(store, claim.digest, data, note, f"{member.data_end} {member.size} {member.json_size}")
    return Toc(descriptor, claim, member.data_end, member.size, data)


def _hint(store: Store, note: str, descriptor: Descriptor) -> _Hint | None:
    """Blocking. The content of the store's note; None if there is none."""
    numbers = (store.note(note) or "").split(" ")
    if not all(number.isdecimal() and len(number) < 20 for number in numbers):
        return None
    if len(numbers) == 1:  # from an earlier version, which did not note how much arrived
        return _Hint(int(numbers[0]), max(descriptor.size - int(numbers[0]), 0), _UNKNOWN)
    return _Hint(*map(int, numbers)) if len(numbers) == 3 else None


def _recall(store: Store, descriptor: Descriptor, claim: TocClaim, hint: _Hint) -> Toc | None:
    data = store.document(claim.digest)
    if data is None:
        return None
    return Toc(descriptor, claim, hint.offset, min(hint.arrived, len(data)), data)


def _named(descriptor: Descriptor) -> str:
    return f"layer {descriptor.digest}"


def _note(authority: str, descriptor: Descriptor, dialect: Dialect) -> str:
    # The footer says where the TOC is, and no digest covers part of a blob: one registry's answer must not be used for another.
    key = f"toc-offset {authority} {descriptor.digest}"
    return key if dialect is ESTARGZ else f"{key} {dialect.name}"  # earlier versions knew only eStargz
