"""A layer: its descriptor, and its TOC, verified.

The trust chain goes manifest -> annotation `toc.digest` -> TOC -> chunk digests. The footer stands outside of it: it
only says where to look for the TOC, and a lie there ends in a digest that does not match.

A layer that has no such TOC is fetched whole (lazyfs/whole); we then write a TOC of it ourselves, so that everybody behind
this sees one kind of layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from lazyfs.errors import InvalidToc, NotLazy
from lazyfs.format.digest import Digest, check, parse_digest
from lazyfs.format.entry import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, Entry
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.manifest import Descriptor, check_layer_type
from lazyfs.format.member import inflate_member
from lazyfs.format.toc import MAX_TOC_SIZE, parse_toc
from lazyfs.format.whiteout import LeftOut
from lazyfs.image.keeping import keep
from lazyfs.source.protocol import ImageSource

if TYPE_CHECKING:
    from lazyfs.store.store import Store

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""The annotation of a layer's descriptor that vouches for its TOC."""
_BLOCK: Final = 512
_LARGEST_GUESS: Final = 4 << 20


class Whole(NamedTuple):
    """What it takes to fetch a layer whole."""

    reason: str
    """Why it is not lazy, as the end of a sentence that begins with the layer."""
    diff_id: Digest


class Layer(NamedTuple):
    """A layer that can be mounted."""

    descriptor: Descriptor
    toc_digest: Digest
    toc_offset: int
    """Where the chunks end: in the blob, or for a layer that is not lazy in the sum of its files."""
    entries: tuple[Entry, ...]
    whole: Whole | None = None
    """For a layer that is not lazy: no chunk of it can be fetched alone."""
    note: str = ""
    """What a full pull would show and this layer does not, in words; empty where there is nothing."""

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def reason(self) -> str:
        """Why it is not lazy; empty where it is."""
        return self.whole.reason if self.whole else ""

    @property
    def prefetch_end(self) -> int:
        """Blob offset up to which the author wants the layer fetched first; 0 where there is no landmark for it."""
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
    """A layer's TOC, verified, and not yet parsed."""

    descriptor: Descriptor
    digest: Digest
    offset: int
    """Where it is in the blob."""
    data: bytes
    """JSON."""

    def layer(self) -> Layer:
        """Blocking. Parsed: 4 µs an entry. Raises InvalidToc."""
        left_out = LeftOut()
        entries = parse_toc(self.data, self.offset, _named(self.descriptor), left_out)
        return Layer(self.descriptor, self.digest, self.offset, entries, note=left_out.note)


async def load_layer(source: ImageSource, store: Store | None, descriptor: Descriptor) -> Layer:
    """The layer of `descriptor`, with its TOC: see `load_toc`. Raises InvalidToc as well."""
    return await trio.to_thread.run_sync((await load_toc(source, store, descriptor)).layer)


async def load_toc(source: ImageSource, store: Store | None, descriptor: Descriptor) -> Toc:
    """The TOC of a layer from the store, or from the source, where it takes one range request, seldom two; it is in the store then.

    Raises NotLazy with the reason where the layer cannot be lazy, RangeIgnored where only this source keeps it from being lazy;
    InvalidManifest, InvalidToc, DigestMismatch, SourceError.
    """
    what = _named(descriptor)
    check_layer_type(descriptor)  # first: what is no layer of an image would not become one by being converted
    # Whatever compression the media type names: where there is a footer and the TOC that is vouched for, it is eStargz.
    toc_digest = claimed_toc_digest(descriptor.annotations, what)
    kept = await trio.to_thread.run_sync(partial(_recall, store, source.authority, descriptor, toc_digest)) if store else None
    if kept is not None:
        return kept
    offset, member = await fetch_toc_member(source, descriptor, what)
    return await trio.to_thread.run_sync(partial(_accept, store, source.authority, descriptor, toc_digest, offset, member))


def claimed_toc_digest(annotations: Mapping[str, str], what: str) -> Digest:
    """The TOC digest that the manifest vouches for. Raises NotLazy where it does not."""
    text = annotations.get(TOC_DIGEST)
    if text is None:
        raise NotLazy(f"{what} has no annotation {TOC_DIGEST}: its manifest vouches for no TOC")
    return parse_digest(text, f"the TOC digest of {what}")


async def fetch_toc_member(source: ImageSource, descriptor: Descriptor, what: str) -> tuple[int, bytes]:
    """(blob offset, compressed bytes) of the TOC's gzip member. One range for most blobs, two for those with a large TOC."""
    size = descriptor.size
    if size <= FOOTER_SIZE:
        raise NotLazy(f"{what} is an ordinary layer without an eStargz footer")
    start = max(0, size - first_guess(size))
    async with source.open_range(descriptor.digest, size, start, size) as stream:
        tail = bytes(await stream.receive_exactly(size - start))
    offset = parse_footer(tail[-FOOTER_SIZE:], size, what)
    if size - offset > MAX_TOC_SIZE:
        raise InvalidToc(f"{what}: the compressed TOC has {size - offset} bytes, more than {MAX_TOC_SIZE}")
    member = tail[max(0, offset - start) : -FOOTER_SIZE]
    if offset < start:
        async with source.open_range(descriptor.digest, size, offset, start) as stream:
            member = bytes(await stream.receive_exactly(start - offset)) + member
    return offset, member


def first_guess(size: int) -> int:
    """How much of a blob's end to ask for at first. TOCs measured 0.4 to 0.7 % of their blob; a guess too small costs a
    round trip, one too large costs bytes: a layer of large files has a small TOC, and `size` is only a claim."""
    return min(size, max(32 << 10, size // 100), _LARGEST_GUESS)


def read_toc_member(member: bytes, what: str) -> bytes:
    """The TOC's JSON out of its gzip member, which holds a tar entry. Raises InvalidToc, InvalidInput."""
    header = memoryview(inflate_member(member, _BLOCK, f"the TOC of {what}"))[:_BLOCK]
    name = bytes(header[:100]).rstrip(b"\0")
    if name != TOC_NAME:
        raise InvalidToc(f"{what}: where the TOC should be there is the tar entry {name!r}")
    try:
        size = int(bytes(header[124:136]).strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise InvalidToc(f"{what}: the TOC's tar header has a broken size") from None
    if size > MAX_TOC_SIZE:
        raise InvalidToc(f"{what}: the TOC has {size} bytes, more than {MAX_TOC_SIZE}")
    return bytes(memoryview(inflate_member(member, _BLOCK + size, f"the TOC of {what}"))[_BLOCK : _BLOCK + size])


def _accept(store: Store | None, authority: str, descriptor: Descriptor, toc_digest: Digest, offset: int, member: bytes) -> Toc:
    what = _named(descriptor)
    data = read_toc_member(member, what)
    check(data, toc_digest, f"the TOC of {what}")
    if store is not None:
        keep(store, toc_digest, data, _note(authority, descriptor), str(offset))
    return Toc(descriptor, toc_digest, offset, data)


def _recall(store: Store, authority: str, descriptor: Descriptor, toc_digest: Digest) -> Toc | None:
    note = store.note(_note(authority, descriptor))
    data = store.document(toc_digest)
    if note is None or data is None or not note.isdecimal():
        return None
    return Toc(descriptor, toc_digest, int(note), data)


def _named(descriptor: Descriptor) -> str:
    return f"layer {descriptor.digest}"


def _note(authority: str, descriptor: Descriptor) -> str:
    # The blob's footer says where the TOC is, and no digest vouches for a part of a blob: one registry must not tell that for another.
    return f"toc-offset {authority} {descriptor.digest}"
