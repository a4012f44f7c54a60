"""Images of stacks: built once, found again, shared where they may be, and complete whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lazyfs.erofs.image import WRITER_VERSION
from lazyfs.errors import DigestMismatch, InvalidToc, LocalError, StoreUnusable
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.toc_json import encode_toc
from lazyfs.native import builder
from lazyfs.native.metadata import GrowingStack, LayerMetadata, ensure_metadata
from tests.metadata_images import image_of

ROOT = Entry(b"", "dir", mode=0o751)


def store_of(folder: Path) -> Path:
    """A store as far as metadata knows it."""
    (folder / "documents").mkdir(exist_ok=True)
    return folder


def kept(store: Path, entries: Sequence[Entry]) -> LayerMetadata:
    """A layer whose TOC the store has."""
    data = encode_toc(entries, None)
    (store_of(store) / "documents" / digest_of(data)[7:]).write_bytes(data)
    return LayerMetadata(digest_of(data), 0)


def files(store: Path) -> dict[str, int]:
    """What erofs/ holds: name -> inode, which is another one when it was made again."""
    return {entry.name: entry.stat().st_ino for entry in os.scandir(store / "erofs")}


def test_images_are_built_lowest_first_with_what_they_inherit(tmp_path: Path) -> None:
    """Each is what the writer makes of its layer on those below; the lowest has its TOC's name."""
    lower = [ROOT, Entry(b"d", "dir", uid=3), Entry(b"gone", "dir", uid=4)]
    middle = [Entry(b"d/f", "fifo"), Entry(b".wh.gone", "reg")]
    upper = [Entry(b"d/g", "fifo"), Entry(b"gone/f", "fifo")]
    layers = [kept(tmp_path, entries) for entries in (lower, middle, upper)]
    images = ensure_metadata(tmp_path, layers)
    inherited = {b"": ROOT, b"d": lower[1]}
    assert [image.read_bytes() for image in images] == [
        image_of(lower),
        image_of(middle, inherited),
        image_of(upper, inherited),
    ]
    assert images[0] == tmp_path / "erofs" / f"{WRITER_VERSION}-{layers[0].toc_digest[7:]}"
    assert all(image.stat().st_mode & 0o7777 == 0o444 for image in images)


def test_what_is_there_is_found_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is built or read but notes: TOCs may be gone."""
    layers = [kept(tmp_path, [ROOT, Entry(b"d", "dir")]), kept(tmp_path, [Entry(b"d/f", "fifo")])]
    images = ensure_metadata(tmp_path, layers)
    before = files(tmp_path)
    for document in (tmp_path / "documents").iterdir():
        document.unlink()
    monkeypatch.setattr(builder.sys, "executable", "/nonexistent")
    assert ensure_metadata(tmp_path, layers) == images
    assert files(tmp_path) == before


def test_an_image_that_is_needed_again_is_young(tmp_path: Path) -> None:
    """Eviction begins with the oldest: finding an image updates its time."""
    layer = kept(tmp_path, [ROOT])
    [image] = ensure_metadata(tmp_path, [layer])
    os.utime(image, (1, 1))
    ensure_metadata(tmp_path, [layer])
    assert image.stat().st_mtime > 1


def test_stacks_share_images_where_they_inherit_alike(tmp_path: Path) -> None:
    """A layer on two bases that agree about its implied directories has one image, and else one for each."""
    layer = kept(tmp_path, [Entry(b"d/f", "fifo")])
    plain = [kept(tmp_path, [Entry(b"a", "fifo")]), kept(tmp_path, [Entry(b"b", "fifo")])]
    other = kept(tmp_path, [Entry(b"d", "dir", uid=1)])
    alone = ensure_metadata(tmp_path, [layer])
    assert {ensure_metadata(tmp_path, [base, layer])[-1] for base in plain} == set(alone)
    assert ensure_metadata(tmp_path, [other, layer])[-1] not in alone
    assert ensure_metadata(tmp_path, [plain[0], other, layer])[-1] == ensure_metadata(tmp_path, [other, layer])[-1]


def test_a_directory_below_that_is_like_one_made_up_still_counts_for_whiteouts(tmp_path: Path) -> None:
    """If the directory exists below, its whiteout is needed; if not, the whiteout would create a directory."""
    layer = kept(tmp_path, [Entry(b"d/.wh.x", "reg")])
    base = kept(tmp_path, [Entry(b"d", "dir")])
    with_d, without = ensure_metadata(tmp_path, [base, layer])[-1], ensure_metadata(tmp_path, [layer])[-1]
    assert with_d.read_bytes() == image_of([Entry(b"d/.wh.x", "reg")], {b"d": Entry(b"d", "dir")})
    assert without.read_bytes() == image_of([]) != with_d.read_bytes()


def test_the_stack_begins_at_the_topmost_opaque_root(tmp_path: Path) -> None:
    """What lies below is not mounted, yet the root takes its attributes from there."""
    opaque = [Entry(b".wh..wh..opq", "reg"), Entry(b"f", "fifo")]
    layers = [kept(tmp_path, entries) for entries in ([ROOT], opaque, [Entry(b"g", "fifo")])]
    for _ in range(2):  # built, and found
        images = ensure_metadata(tmp_path, layers)
        assert [image.read_bytes() for image in images] == [
            image_of(opaque, {b"": ROOT}),
            image_of([Entry(b"g", "fifo")], {b"": ROOT}),
        ]


def test_the_same_layer_twice_is_one_image_twice(tmp_path: Path) -> None:
    """Images exist that have it so: an empty layer of every instruction that changed nothing."""
    empty = kept(tmp_path, [])
    images = ensure_metadata(tmp_path, [empty] * 128)
    assert len(images) == 128 and len(set(images)) == 1


def test_notes_and_images_that_are_gone_or_broken_come_back(tmp_path: Path) -> None:
    """Each image is a function of its name; an unreadable note is written again."""
    layers = [kept(tmp_path, [ROOT]), kept(tmp_path, [Entry(b"d/f", "fifo")])]
    images = ensure_metadata(tmp_path, layers)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "erofs").iterdir()}
    for name in whole:
        (tmp_path / "erofs" / name).unlink()
        if name.endswith(".layer"):
            (tmp_path / "erofs" / name).write_bytes(b"")
        assert ensure_metadata(tmp_path, layers) == images
        assert {path.name: path.read_bytes() for path in (tmp_path / "erofs").iterdir()} == whole


def test_a_stack_that_grows(tmp_path: Path) -> None:
    """Its images are those of the whole stack; of processes that were started ahead none stays, whether or not they were needed."""
    layers = [kept(tmp_path, [ROOT, Entry(b"d", "dir", uid=3)]), kept(tmp_path, [Entry(b"d/f", "fifo")])]
    for _ in range(2):  # built, and found
        with closing(GrowingStack(tmp_path)) as stack:
            stack.expect([layer.key for layer in layers])
            images = [stack.add(layer) for layer in (*layers, tmp_path)]
            assert [image.result() for image in images] == [*ensure_metadata(tmp_path, layers), tmp_path]
    assert not builders_left()


def test_many_at_once_agree(tmp_path: Path) -> None:
    """Threads and processes that need the same stack at the same time all get it, and nothing is left beside it."""
    layers = [kept(tmp_path, [ROOT, *(Entry(b"%d" % number, "fifo") for number in range(500))]), kept(tmp_path, [])]
    start = threading.Barrier(4)

    def ensure(_: int) -> tuple[Path, ...]:
        start.wait()
        return ensure_metadata(tmp_path, layers)

    with ThreadPoolExecutor(4) as pool:
        results = set(pool.map(ensure, range(4)))
    assert len(results) == 1
    assert len(files(tmp_path)) == 4


def test_a_missing_or_damaged_document_is_an_error_in_words(tmp_path: Path) -> None:
    """What could be built is there, nothing half done is."""
    good = kept(tmp_path, [ROOT])
    gone, damaged = kept(tmp_path, [Entry(b"a", "fifo")]), kept(tmp_path, [Entry(b"b", "fifo")])
    (tmp_path / "documents" / gone.toc_digest[7:]).unlink()
    (tmp_path / "documents" / damaged.toc_digest[7:]).write_bytes(b"{}")
    with pytest.raises(StoreUnusable, match="Mount the image again"):
        ensure_metadata(tmp_path, [good, gone])
    with pytest.raises(DigestMismatch):
        ensure_metadata(tmp_path, [damaged, good])
    assert len(files(tmp_path)) in (2, 4)  # the good one's two, and with luck its image on nothing


def test_what_the_writer_refuses_keeps_its_class_and_hint(tmp_path: Path) -> None:
    """Across the process, it is the same error."""
    with pytest.raises(InvalidToc, match="portable"):
        ensure_metadata(tmp_path, [kept(tmp_path, [Entry(b"sha256-0", "fifo")])])


def test_a_builder_that_dies_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example killed for lack of memory."""
    monkeypatch.setattr(builder.sys, "executable", "/bin/false")
    with pytest.raises(LocalError, match="ended with exit code 1"):
        ensure_metadata(tmp_path, [kept(tmp_path, [])])
    assert files(tmp_path) == {}


def test_no_process_stays(tmp_path: Path) -> None:
    """Neither after success nor after an error."""
    ensure_metadata(tmp_path, [kept(tmp_path, [ROOT])])
    with pytest.raises(InvalidToc):
        ensure_metadata(tmp_path, [kept(tmp_path, [ROOT, Entry(b"chunks-", "fifo")])])
    assert not builders_left()


def builders_left() -> list[str]:
    """Processes of ours that build."""
    children = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends just now
            children += (task / "children").read_text().split()
    return [pid for pid in children if b"lazyfs.erofs" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_builder_imports_neither_event_loop_nor_http() -> None:
    """Its start is part of somebody's first mount."""
    code = "import sys, lazyfs.erofs.__main__; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"trio", "httpx", "pyfuse3", "rich", "sqlite3", "asyncio"} & set(modules)
