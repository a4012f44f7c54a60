"""What a building process answers, and what it leaves on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from lazyfs.erofs.work import Build, Built, Failed, NeededBelow, Read, Worker, publish
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.toc_json import encode_toc
from tests.metadata_images import image_of

ENTRIES = [Entry(b"d/f", "reg"), Entry(b"d/.wh.x", "reg"), Entry(b".wh..wh..opq", "reg")]


def read(folder: Path, data: bytes) -> Read:
    """A document in `folder`, and the order to read it."""
    (folder / "document").write_bytes(data)
    return Read(str(folder / "document"), digest_of(data), 0)


def test_the_notes_of_a_store_stay_readable() -> None:
    """NeededBelow is written into notes, under the name that earlier versions gave it."""
    note = b'{"type":"Told","implied":["ZXRj"],"opaque":false}'
    assert msgspec.json.encode(NeededBelow((b"etc",), opaque=False)) == note
    assert msgspec.json.decode(note, type=NeededBelow) == NeededBelow((b"etc",), opaque=False)


def test_reads_answers_and_builds(tmp_path: Path) -> None:
    """The image is the writer's, with what was inherited, read-only, and nothing else is in the folder."""
    worker = Worker()
    implied = worker.answer(read(tmp_path, encode_toc(ENTRIES, None)))
    assert implied == NeededBelow((b"",), opaque=True)  # under an opaque root nothing else is taken from below
    (tmp_path / "erofs").mkdir()
    root = Entry(b"", "dir", uid=9)
    built = worker.answer(Build(str(tmp_path / "erofs"), "1-name", ((b"", root),)))
    [image] = (tmp_path / "erofs").iterdir()
    assert image.read_bytes() == image_of(ENTRIES, {b"": root}) and built == Built(image.stat().st_size)
    assert image.stat().st_mode & 0o7777 == 0o444


@pytest.mark.parametrize(
    ("damage", "kind"), [(lambda path: path.unlink(), "StoreUnusable"), (lambda path: path.write_bytes(b"{}"), "DigestMismatch")]
)
def test_a_document_that_is_gone_or_another_fails_in_words(tmp_path: Path, damage: object, kind: str) -> None:
    """The worker lives on for the next question."""
    worker = Worker()
    order = read(tmp_path, encode_toc(ENTRIES, None))
    damage(tmp_path / "document")  # type: ignore[operator]
    answer = worker.answer(order)
    assert isinstance(answer, Failed) and answer.kind == kind and "document" in answer.message + str(order.path)
    assert isinstance(worker.answer(read(tmp_path, encode_toc(ENTRIES, None))), NeededBelow)


def test_a_hostile_document_fails_in_words(tmp_path: Path) -> None:
    """What parse_toc or the writer refuses becomes an answer with the same words."""
    worker = Worker()
    answer = worker.answer(read(tmp_path, b'{"version": 2, "entries": []}'))
    assert isinstance(answer, Failed) and answer.kind == "InvalidToc" and "version 2" in answer.message
    large = Entry(b"f", "reg", xattrs=((b"user.x", bytes(65536)),))
    assert isinstance(worker.answer(read(tmp_path, encode_toc([large], None))), NeededBelow)
    answer = worker.answer(Build(str(tmp_path), "1-name", ()))
    assert isinstance(answer, Failed) and "65535" in answer.message and "portable" in answer.hint
    assert os.listdir(tmp_path) == ["document"]


def test_a_layer_that_implies_a_host_of_directories_is_refused(tmp_path: Path) -> None:
    """Each would be looked up in every layer below: 16 MiB of their names is where that ends."""
    deep = b"d/" * 2000
    hostile = [Entry(b"%d/" % number + deep + b"f", "reg") for number in range(9)]
    answer = Worker().answer(read(tmp_path, encode_toc(hostile, None)))
    assert isinstance(answer, Failed) and "implies 18" in answer.message
    assert isinstance(Worker().answer(read(tmp_path, encode_toc(hostile[:3], None))), NeededBelow)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The error goes up, and no file, named or not, stays."""

    def fill(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        publish(str(tmp_path), "name", fill)
    assert os.listdir(tmp_path) == []


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    """Of two that build the same image at once, one is the first; the other is content with it."""
    (tmp_path / "name").write_bytes(b"first")
    assert publish(str(tmp_path), "name", lambda file: file.writelines([b"other"])) == 5
    assert (tmp_path / "name").read_bytes() == b"first" and os.listdir(tmp_path) == ["name"]
