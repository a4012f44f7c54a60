"""A dialect: what makes a layer lazy and how its chunks are decoded. Nothing outside the dialects depends on a format.

A dialect is a value. It says which annotations mark its layers, which range of a blob locates the TOC, how the TOC is packed, which
of its bytes the manifest's digest covers, and how a chunk is unpacked. It never fetches: image/toc_member.py fetches the ranges that
it names, and fetch/unpack.py calls it to decode what arrived. dialects.py lists the dialects.

The trust chain is the same for all dialects, and none can skip a link. The callers check it, not the dialect: the bytes
that `document` returns must have the digest that the manifest names (image/layer.py), and a chunk's plain bytes the digest that the TOC
names (fetch/unpack.py). Everything else that a dialect reads (a footer, a header, an offset) is a hint.

A dialect cannot choose the JSON of the TOC: all formats below use eStargz's (toc.py). They were checked on paper against this interface:

- zstd:chunked of containers/storage (`io.github.containers.zstd-chunked.`, and its earlier prefix): two dialects that share their
  functions. The annotation `manifest-checksum` is a digest of the compressed TOC, so `document` returns that, and `json` decompresses
  it; the 72-byte footer says where it is and how long its JSON is. A chunk is a frame, and `decode` stops where the chunk does. A chunk
  of zeros over MAX_CHUNK_SIZE is refused. containerd passes neither prefix to a snapshotter as a label, so a Prepare of such a layer must
  look for its annotations in the manifest first: read_labels would have to return a claim without a TOC digest.
- zstd:chunked of stargz-snapshotter: eStargz's annotation beside `io.containers.zstd-chunked.manifest-checksum`, so `annotations` names
  both, and it stands before eStargz in DIALECTS. The digest is eStargz's, of the JSON. Its frames run on behind a chunk, like members.
- Legacy footer (CRFS, 47 bytes): another branch of eStargz's `locate`. Where the manifest has no `toc.digest`, the layer is not lazy.
- External TOC: the TOC is in a blob of another manifest (`REF-esgztoc`), found by the layer's digest there. TocLocation
  needs one more field, that blob, and image/toc_member.py one more request. Digest, JSON, chunks are eStargz's, and data_end is the 46-byte footer's offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from lazyfs.format.bounds import ImageBounds, never
from lazyfs.format.digest import Digest
from lazyfs.format.entry import Entry
from lazyfs.format.toc import parse_toc
from lazyfs.format.whiteout import LeftOut

Buffer = bytes | bytearray | memoryview


class TocLocation(NamedTuple):
    """Where the TOC of a blob is: byte offsets in the blob."""

    start: int
    """Where the compressed TOC begins."""
    end: int
    """Where the compressed TOC ends."""
    data_end: int
    """Where the compressed bytes of the last chunk end."""
    json_size: int = 0
    """Bytes of the TOC's JSON, if the blob says so outside the compressed TOC, else 0."""


class Dialect(NamedTuple):
    """What a reader must know about a format. `what` names the layer in errors. All functions are pure and may block briefly."""

    name: str
    """Stored in rows and labels, and shown to users: letters and digits. Never changes."""
    annotations: tuple[str, ...]
    """A layer whose descriptor has all of these belongs to the dialect. The value of the first is the sha256 digest of `document`."""
    media_type: str
    """The media type to assume for a layer whose descriptor is not known."""
    ratio: int
    """The most plain bytes that one compressed byte can become. Bounds what a TOC may claim (toc_chunks.py)."""
    first_range: Callable[[int, str], tuple[int, int]]
    """(blob size, what): the range of the blob to fetch first. Raises NotLazy if a blob of that size cannot have a TOC."""
    locate: Callable[[int, int, bytes, str], TocLocation]
    """(blob size, start, data, what): where the TOC is, from the bytes `data` of the first range, which begins at `start`. It lies inside
    the blob. Raises NotLazy if the blob is not of this dialect, InvalidToc if it is broken."""
    json_size: Callable[[TocLocation, bytes, str], int]
    """(location, begin, what): bytes of JSON that the TOC claims to have, from the first 64 KiB of its compressed bytes. The caller bounds it.
    Raises InvalidToc, InvalidInput."""
    document: Callable[[Iterable[bytes], int, str], bytes | bytearray]
    """(pieces, JSON size, what): the bytes that the manifest's digest covers and that the store keeps, from the compressed TOC. Needs
    no more memory than the JSON size and 32 MiB. Raises InvalidInput."""
    json: Callable[[bytes | bytearray, str], bytes | bytearray]
    """(document, what): the TOC's JSON, from a document whose digest was right. Needs no more memory than format/bounds.py allows for a
    document of that size. Raises InvalidInput."""
    decode: Callable[[Buffer, int, str], bytes | bytearray]
    """(data, length, what): the first `length` plain bytes, or a few more, of the member or frame at the start of `data`. Needs at most
    `length` + 1 MiB of memory, whatever the data claims. Raises InvalidInput. Called for every chunk, in a thread."""

    def entries(
        self,
        document: bytes | bytearray,
        data_end: int,
        what: str,
        left_out: LeftOut | None = None,
        *,
        arrived: int | None = None,
        accepted: bool = False,
        check_cancelled: Callable[[], None] = never,
        image: ImageBounds | None = None,
    ) -> tuple[Entry, ...]:
        """The entries of a TOC whose digest was right. Arguments and errors are those of `parse_toc`, and InvalidInput."""
        return parse_toc(
            self.json(document, what),
            data_end,
            what,
            left_out,
            arrived=len(document) if arrived is None else arrived,
            accepted=accepted,
            check_cancelled=check_cancelled,
            image=image,
            ratio=self.ratio,
        )


class TocClaim(NamedTuple):
    """What a manifest says about a layer's TOC."""

    dialect: Dialect
    digest: Digest
    """The digest of the dialect's `document`."""

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of a descriptor that make this claim and nothing else."""
        return dict.fromkeys(self.dialect.annotations, "") | {self.dialect.annotations[0]: self.digest}
