"""Reads a file's bytes from a spooled tar."""

from __future__ import annotations

from bisect import bisect_right

from lazyfs.format.tar import ReadAt
from lazyfs.layertar.plan import Planned


def read_content(planned: Planned, file_offset: int, size: int, read_at: ReadAt) -> bytes:
    """`size` bytes at `file_offset` of a file, with zeros where it has holes."""
    if planned.content:
        return planned.content[file_offset : file_offset + size]
    extents = planned.extents
    if len(extents) == 1 and extents[0].size == planned.entry.size:
        return read_at(extents[0].tar_offset + file_offset, size)
    content = bytearray(size)
    end = file_offset + size
    first = max(bisect_right(extents, file_offset, key=lambda extent: extent.file_offset) - 1, 0)
    for extent in extents[first:]:
        if extent.file_offset >= end:
            break
        begin = max(extent.file_offset, file_offset)
        until = min(extent.file_offset + extent.size, end)
        if begin < until:
            at = extent.tar_offset + begin - extent.file_offset
            content[begin - file_offset : until - file_offset] = read_at(at, until - begin)
    return bytes(content)
