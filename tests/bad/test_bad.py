"""Bad input: one line a case says what it is, what is asked of it, and what the user is told.

Whatever the case: the exit code says of what kind the trouble is, the message names what is concerned, there is no
traceback, and the destination is as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from lazyfs.cli.main import main
from tests.bad import make, tocs
from tests.bad.oci import DATA, Oci
from tests.commands import Lazyfs

CASES = vars(make) | vars(tocs)
"""Name -> what makes the image."""


class Bad(NamedTuple):
    """One of CASES, the command that it is given to, and what comes of it."""

    case: str
    command: str
    code: int
    words: tuple[str, ...]
    """All of them are in the message. LAYER stands for the first layer's digest, IMAGE for the layout's name."""


TABLE = [
    # Digests, and what they are of
    Bad("manifest_of_another_digest", "ls", 3, ("IMAGE", "should hash to sha256:", "but hashes to")),
    Bad("manifest_of_another_digest", "convert", 3, ("IMAGE", "should hash to sha256:", "but hashes to")),
    Bad("manifest_missing", "ls", 4, ("IMAGE", "is not there")),
    Bad("manifest_of_no_digest", "ls", 3, ("'sha256:12'", "not a sha256 digest")),
    Bad("manifest_of_sha512", "ls", 3, ("'sha512:", "not a sha256 digest")),
    Bad("config_missing", "ls", 4, (make.ELSEWHERE, "IMAGE", "is not there")),
    Bad("config_missing", "convert", 4, (make.ELSEWHERE, "IMAGE", "is not there")),
    Bad("config_of_another_digest", "ls", 3, ("IMAGE", "should hash to sha256:")),
    Bad("layer_without_digest", "ls", 3, ("layers[0]", "not a sha256 digest")),
    Bad("layer_missing", "ls", 4, ("LAYER", "is not there")),
    Bad("layer_missing", "convert", 4, ("LAYER", "is not there")),
    Bad("plain_layer_of_another_digest", "convert", 3, ("LAYER", "hashes to sha256:")),
    Bad("plain_layer_of_another_diff_id", "convert", 3, ("LAYER", "diff ID is " + make.ELSEWHERE)),
    Bad("toc_of_another_digest", "ls", 3, ("TOC of layer LAYER", "should hash to " + make.ELSEWHERE)),
    Bad("toc_of_no_digest", "ls", 3, ("LAYER", "'sha256:12'", "not a sha256 digest", "lazyfs convert IMAGE")),
    Bad("toc_of_no_annotation", "ls", 3, ("LAYER", "names no TOC digest", "lazyfs convert IMAGE")),
    Bad("file_of_another_digest", "cat", 3, ("'file'", "LAYER", "should hash to " + make.ELSEWHERE)),
    Bad("chunk_without_digest", "ls", 3, ("LAYER", "'file'", "without a sha256 digest")),
    Bad("file_without_digest", "ls", 3, ("LAYER", "'file'", "without a sha256 digest")),
    Bad("file_of_sha512", "ls", 3, ("LAYER", "'file'", "without a sha256 digest")),
    # Blobs cut short
    Bad("lazy_layer_truncated", "ls", 4, ("LAYER", "bytes instead of")),
    Bad("lazy_layer_truncated_and_said_so", "ls", 3, ("LAYER", "without an eStargz footer")),
    Bad("plain_layer_truncated", "convert", 4, ("LAYER", "bytes instead of")),
    Bad("plain_layer_truncated_and_said_so", "convert", 3, ("LAYER", "ends inside a gzip member")),
    Bad("layer_of_51_bytes", "ls", 3, ("LAYER", "without an eStargz footer")),
    Bad("layer_of_no_bytes", "ls", 3, ("LAYER", "without an eStargz footer")),
    # TOCs that are none
    Bad("toc_no_json", "ls", 3, ("LAYER", "not the JSON")),
    Bad("toc_no_utf8", "ls", 3, ("LAYER", "not the JSON")),
    Bad("toc_no_object", "ls", 3, ("LAYER", "not the JSON")),
    Bad("toc_without_entries", "ls", 3, ("LAYER", "not the JSON", "entries")),
    Bad("toc_version_2", "ls", 3, ("LAYER", "version 2", "only version 1")),
    Bad("toc_nested", "ls", 3, ("LAYER", "not the JSON")),
    Bad("toc_of_too_many_entries", "ls", 3, ("LAYER", "2000001 entries, more than 2000000")),
    Bad("toc_of_far_too_many_entries", "ls", 3, ("LAYER", "more than 2000000 entries")),
    Bad("toc_begins_with_a_chunk", "ls", 3, ("LAYER", "begins with a chunk of no file")),
    Bad("toc_entry_without_name", "ls", 3, ("LAYER", "not the JSON", "name")),
    Bad("toc_entry_of_unknown_type", "ls", 3, ("LAYER", "'it'", "unknown type 'socket'")),
    Bad("toc_member_no_gzip", "ls", 3, ("TOC of layer LAYER", "gzip member is broken")),
    Bad("toc_member_cut_short", "ls", 3, ("TOC of layer LAYER", "gzip member ends after")),
    Bad("toc_under_another_name", "ls", 3, ("LAYER", "'index.json'")),
    Bad("toc_shorter_than_it_says", "ls", 3, ("TOC of layer LAYER", "gzip member ends after")),
    Bad("toc_over_256_mib", "ls", 3, ("LAYER", "268435457 bytes, more than 268435456")),
    Bad("toc_over_256_mib_compressed", "ls", 3, ("LAYER", "the compressed TOC", "more than 268435456")),
    # Chunks and where they lie
    Bad("chunks_overlap", "ls", 3, ("LAYER", "'file'", "a chunk at 1999 where 2000 comes next")),
    Bad("chunks_leave_a_gap", "ls", 3, ("LAYER", "'file'", "a chunk at 2001 where 2000 comes next")),
    Bad("chunks_end_early", "ls", 3, ("LAYER", "'file'", "end at 2010 of 4000 bytes")),
    Bad("chunks_descend", "ls", 3, ("LAYER", "'file'", "a chunk at 4000 where 2000 comes next")),
    Bad("chunks_reach_over_the_end", "ls", 3, ("LAYER", "'file'", "a chunk of 2001 bytes at 2000 of 4000")),
    Bad("chunks_of_a_link", "ls", 3, ("LAYER", "'it'", "not a regular file and yet has chunks")),
    Bad("chunks_of_an_empty_file", "ls", 3, ("LAYER", "'it'", "empty and yet has chunks")),
    Bad("chunk_missing", "ls", 3, ("LAYER", "'file'", "end at 2000 of 4000 bytes")),
    Bad("chunk_size_negative", "ls", 3, ("LAYER", "'file'", "a chunk of -5 bytes")),
    Bad("chunk_size_absurd", "ls", 3, ("LAYER", "'file'", "a chunk of 1099511627776 bytes, more than")),
    Bad("file_size_negative", "ls", 3, ("LAYER", "'file'", "has the size -1")),
    Bad("file_size_over_int64", "ls", 3, ("LAYER", "'file'", "has the size 9223372036854775808")),
    Bad("file_size_over_everything", "ls", 3, ("LAYER", "'file'", "has the size 1000000000000000000000000000000")),
    Bad("file_size_a_fraction", "ls", 3, ("LAYER", "not the JSON", "size")),
    Bad("offset_negative", "ls", 3, ("LAYER", "'file'", "offset -1, outside the blob's data")),
    Bad("offset_outside", "ls", 3, ("LAYER", "'file'", "offset 1099511627776, outside the blob's data")),
    Bad("offset_in_the_toc", "ls", 3, ("LAYER", "'file'", "outside the blob's data")),
    Bad("inner_offset_negative", "ls", 3, ("LAYER", "'file'", "innerOffset -1")),
    Bad("inner_offset_absurd", "ls", 3, ("LAYER", "'file'", "innerOffset 1099511627776")),
    Bad("footer_outside", "ls", 3, ("LAYER", "puts the TOC at 1099511627776, outside the blob's")),
    Bad("footer_no_number", "ls", 3, ("LAYER", "00000000000000zz", "not a hexadecimal number")),
    Bad("footer_elsewhere", "ls", 3, ("TOC of layer LAYER", "gzip member is broken")),
    Bad("member_ends_early", "cat", 3, ("'file'", "LAYER of IMAGE at offset 0", "ends after")),
    Bad("member_no_gzip", "cat", 3, ("'file'", "LAYER of IMAGE at offset 0", "gzip member is broken")),
    Bad("member_with_a_flipped_bit", "cat", 3, ("'file'", "LAYER")),
    Bad("bomb_in_the_toc", "ls", 3, ("LAYER", "not the JSON")),
    # Names, links, attributes
    Bad("name_climbs", "ls", 3, ("LAYER", "'a/../../etc/passwd' climbs out")),
    Bad("name_absolute", "ls", 3, ("LAYER", "'/etc/passwd' is absolute")),
    Bad("name_with_nul", "ls", 3, ("LAYER", r"'a\x00b' holds a NUL")),
    Bad("name_too_long", "ls", 3, ("LAYER", "'nnnn", "more than 255 bytes")),
    Bad("name_too_deep", "ls", 3, ("LAYER", "'d/d/d", "more than 4095 bytes")),
    Bad("names_too_deep", "ls", 3, ("LAYER", "implies more directories")),
    Bad("root_a_file", "ls", 3, ("LAYER", "the root is a reg")),
    Bad("link_to_nothing", "ls", 3, ("LAYER", "'it' is a hard link to 'gone'", "not an earlier file of its layer")),
    Bad("link_to_a_later_file", "ls", 3, ("LAYER", "'it' is a hard link to 'file'", "not an earlier file of its layer")),
    Bad("link_to_itself", "ls", 3, ("LAYER", "'it' is a hard link to 'it'", "not an earlier file of its layer")),
    Bad("link_to_a_directory", "ls", 3, ("LAYER", "'it' is a hard link to 'dir'", "not an earlier file of its layer")),
    Bad("link_to_what_is_replaced", "ls", 3, ("LAYER", "'it' is a hard link to 'file'", "not an earlier file of its layer")),
    Bad("link_climbs", "ls", 3, ("LAYER", "'../file' climbs out")),
    Bad("symlink_to_nothing", "ls", 3, ("LAYER", "'it' is a symbolic link to what is not a path")),
    Bad("file_and_directory", "ls", 3, ("LAYER", "'it' is both a directory and a reg")),
    Bad("directory_and_file", "ls", 3, ("LAYER", "'it' is both a directory and a reg")),
    Bad("file_with_something_below", "ls", 3, ("LAYER", "'it' is both a directory and a reg")),
    Bad("file_with_something_above", "ls", 3, ("LAYER", "'it' is both a directory and a reg")),
    Bad("device_absurd", "ls", 3, ("LAYER", "'it' is the device 1099511627776:0")),
    Bad("time_no_time", "ls", 3, ("LAYER", "'file' has the modtime 'yesterday'")),
    Bad("xattr_absurd", "ls", 3, ("LAYER", "'file' has an extended attribute 'user.xxx")),
    Bad("tar_too_deep", "convert", 3, ("LAYER", "'d/d/d", "more than 4095 bytes")),
    Bad("tar_links_to_nothing", "convert", 3, ("LAYER", "'it' is a hard link to 'gone'")),
    Bad("tar_links_to_a_later_file", "convert", 3, ("LAYER", "'it' is a hard link to 'file'")),
    # Documents that are no image, or none of ours
    Bad("manifest_schema_1", "ls", 3, ("schema 1", "current docker or skopeo")),
    Bad("manifest_schema_1", "convert", 3, ("schema 1", "current docker or skopeo")),
    Bad("manifest_for_others", "ls", 4, ("IMAGE", "nothing for linux/", "linux/s390x, plan9/mips", "--platform")),
    Bad("manifest_for_others", "convert", 4, ("IMAGE", "nothing for linux/", "linux/s390x, plan9/mips", "--platform")),
    Bad("manifest_no_json", "ls", 3, ("IMAGE", "not JSON")),
    Bad("manifest_and_index", "ls", 3, ("IMAGE", "an index and a manifest at once")),
    Bad("manifest_over_4_mib", "ls", 3, ("IMAGE", "over 4194304 bytes")),
    Bad("indexes_too_deep", "ls", 3, ("IMAGE", "indexes inside indexes")),
    Bad("layer_size_negative", "ls", 3, ("layers[0]", "-1")),
    Bad("layer_size_absurd", "ls", 3, ("layers[0]", "9223372036854775808")),
    Bad("helm_chart", "ls", 3, ("IMAGE", "is not an image config", "Helm chart")),
    Bad("helm_chart", "convert", 3, ("LAYER", "Helm chart")),
    Bad("wasm_module", "ls", 3, ("LAYER ('application/wasm')", "is not a layer of a container image")),
    Bad("wasm_module", "convert", 3, ("LAYER ('application/wasm')", "is not a layer of a container image")),
    Bad("config_no_object", "ls", 3, ("the config of IMAGE", "no object")),
    Bad("layer_no_tar", "convert", 3, ("LAYER",)),
    Bad("layer_no_gzip", "convert", 3, ("LAYER, read as tar",)),
    Bad("layers_without_diff_ids", "convert", 3, ("IMAGE", "1 layers", "0 diff IDs")),
    Bad("layers_without_diff_ids", "ls", 3, ("IMAGE", "1 layers", "0 diff IDs")),
    Bad("encrypted_layer", "ls", 3, ("is encrypted", "--decryption-key")),
    Bad("encrypted_layer", "convert", 3, ("is encrypted", "--decryption-key")),
    Bad("foreign_layer_elsewhere", "convert", 4, ("LAYER", "is not there")),
    Bad("zstd_layer", "ls", 3, ("LAYER", "without an eStargz footer", "lazyfs convert IMAGE")),
    Bad("ordinary", "ls", 3, ("IMAGE", "layer 2 of 2", "lazyfs convert IMAGE")),
    Bad("ordinary", "inspect", 3, ()),
    Bad("encrypted_layer", "inspect", 3, ()),
    Bad("toc_no_json", "inspect", 3, ()),
    Bad("layer_missing", "inspect", 4, ("LAYER", "is not there")),
    Bad("layout_without_marker", "ls", 4, ("src is not an OCI layout",)),
    Bad("layout_without_the_tag", "ls", 4, ("IMAGE has no image 'v1'", "its images: v2")),
]
MOUNTS = [
    Bad("toc_no_json", "mount", 3, ("LAYER", "not the JSON")),
    Bad("layer_missing", "mount", 4, ("LAYER", "is not there")),
    Bad("manifest_for_others", "mount", 4, ("IMAGE", "nothing for linux/", "linux/s390x, plan9/mips")),
    # Layers that are not lazy are refused if that is asked for,
    Bad("ordinary", "mount --lazy-only", 3, ("IMAGE", "layer 2 of 2", "lazyfs convert IMAGE")),
    Bad("zstd_layer", "mount --lazy-only", 3, ("LAYER", "without an eStargz footer", "lazyfs convert IMAGE")),
    Bad("toc_of_no_annotation", "mount --lazy-only", 3, ("LAYER", "names no TOC digest", "lazyfs convert IMAGE")),
    # and fetched whole else, if they are what the image says.
    Bad("plain_layer_of_another_digest", "mount", 3, ("LAYER", "hashes to sha256:")),
    Bad("plain_layer_of_another_diff_id", "mount", 3, ("LAYER", "diff ID is " + make.ELSEWHERE)),
    Bad("plain_layer_truncated", "mount", 4, ("LAYER", "bytes instead of")),
    Bad("plain_layer_truncated_and_said_so", "mount", 3, ("LAYER", "ends inside a gzip member")),
    Bad("plain_layer_bomb", "mount", 3, ("LAYER", "a decompression bomb")),
    Bad("lazy_layer_truncated_and_said_so", "mount", 3, ("LAYER", "hashes to sha256:")),
    Bad("toc_of_no_annotation", "mount", 3, ("LAYER", "unpacks to sha256:", "diff ID")),
    Bad("layer_no_tar", "mount", 3, ("LAYER", "is not a header")),
    Bad("layer_no_gzip", "mount", 3, ("LAYER, read as tar",)),
    Bad("bad_upper_layer", "mount", 3, ("LAYER", "'it' is a hard link to 'gone'")),
    Bad("tar_too_deep", "mount", 3, ("LAYER", "'d/d/d", "more than 4095 bytes")),
    Bad("wasm_module", "mount", 3, ("LAYER ('application/wasm')", "is not a layer of a container image")),
    Bad("encrypted_layer", "mount", 3, ("is encrypted", "--decryption-key")),
    Bad("foreign_layer_elsewhere", "mount", 4, ("LAYER", "is not there")),
]


def arguments(command: str, image: str, tmp_path: Path) -> list[str]:
    """The command line."""
    store = ["--store", str(tmp_path / "store")]
    return {
        "ls": ["ls", image, *store],
        "cat": ["cat", image, "/file", *store],
        "inspect": ["inspect", image, "--json"],
        "convert": ["convert", image, f"oci:{tmp_path}/dst:v1"],
    }[command]


def check(bad: Bad, oci: Oci, output: str) -> None:
    """What the user is told names what is concerned, and is one line."""
    for word in bad.words:
        assert word.replace("IMAGE", f"oci:{oci.path}").replace("LAYER", oci.layer) in output
    assert output.startswith("lazyfs: ") and output.count("\n") == 1


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: f"{bad.command} {bad.case}")
def test_bad_input(bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails with its exit code and its words, in this process; a destination keeps what it had."""
    make.sound(Oci(tmp_path / "dst"))
    before = contents(tmp_path / "dst")
    oci = Oci(tmp_path / "src")
    CASES[bad.case](oci)
    assert main(arguments(bad.command, f"oci:{oci.path}:v1", tmp_path)) == bad.code
    output = capsys.readouterr()
    if bad.command == "inspect" and not bad.words:
        assert oci.layer in output.out and not output.err
    else:
        check(bad, oci, output.err)
        assert not output.out
    assert contents(tmp_path / "dst") == before
    assert not any(contents(tmp_path / "store" / part) for part in ("objects", "partial", "tmp"))


@pytest.mark.fuse
@pytest.mark.parametrize("bad", MOUNTS, ids=lambda bad: f"{bad.command} {bad.case}")
def test_bad_image_is_not_mounted(bad: Bad, tmp_path: Path, lazyfs: Lazyfs) -> None:
    """The mount's own process says why, after what it did before; nothing is mounted, and nothing of the layer is published."""
    oci = Oci(tmp_path / "src")
    CASES[bad.case](oci)
    directory = tmp_path / "directory"
    directory.mkdir()
    command, *options = bad.command.split()
    done = lazyfs.run(
        command, f"oci:{oci.path}:v1", directory, "--store", lazyfs.store, "--mode", "portable", *options, code=bad.code
    )
    *notes, output = done.stderr.decode().splitlines(keepends=True)
    check(bad, oci, output)
    assert all(note.startswith("lazyfs: layer ") and "is not lazy (it " in note for note in notes)
    assert not directory.is_mount()
    if bad.case != "bad_upper_layer":
        assert not any(contents(lazyfs.store / part) for part in ("objects", "arrived", "partial"))


def resident() -> int:
    """The most memory that this process ever had, since it was last forgotten; in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("command", ["cat", "ls"])
def test_bomb_costs_no_more_than_its_chunk(command: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A member that would inflate to 4 GiB is inflated as far as the chunk (or the TOC) reaches, which is right or wrong by itself."""
    oci = Oci(tmp_path / "src")
    CASES["bomb" if command == "cat" else "bomb_in_the_toc"](oci)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    code = main(arguments(command, f"oci:{oci.path}:v1", tmp_path))
    assert resident() - before < 64 << 20
    output = capfdbinary.readouterr()
    if command == "cat":
        assert (code, output.out) == (0, DATA)
    else:
        assert code == 3 and b"not the JSON" in output.err
