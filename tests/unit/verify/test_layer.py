"""A layer whose TOC differs from its tar is reported, by path."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from converter.layer import Style, write_layer
from lazyfs.format import dialects
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.footer import FOOTER_SIZE, build_footer, parse_footer
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Descriptor
from lazyfs.format.member import compress_member, inflate_member
from lazyfs.format.tar import read_tar
from lazyfs.layertar.cut import every
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.plan import plan_layer
from lazyfs.layertar.spool import Spool, unpack
from lazyfs.layertar.tree import LowerTree
from lazyfs.verify.layer import LayerFindings, verify_layer
from tests.dialect.front import FRONT
from tests.dialect.writing import fronted
from tests.toc_member import read_toc_member

Toc = dict[str, Any]


def tar_of_all_types() -> bytes:
    """A small tar with one of everything that a TOC describes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes = b"", **values: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            for key, value in values.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))

        add("d", type=tarfile.DIRTYPE, mode=0o755)
        add("d/a", b"content of a " * 500, mode=0o4755, uid=7)
        add("d/b", b"content of b", pax_headers={"SCHILY.xattr.user.k": "v", "mtime": "1700000000.25"})
        add("d/hard", type=tarfile.LNKTYPE, linkname="d/a", mode=0o4755, uid=7)
        add("soft", type=tarfile.SYMTYPE, linkname="d/b")
        add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    return target.getvalue()


def convert(tar: bytes) -> bytes:
    """The tar as an eStargz blob with chunks of 4 KiB."""

    def read_at(offset: int, size: int) -> bytes:
        return tar[offset : offset + size]

    members = list(read_tar(read_at, len(tar), len(tar), "x"))
    with ThreadPoolExecutor(1) as threads:
        plan = plan_layer(index_layer(LowerTree(), members, 0, "x"))
        file, _ = write_layer(plan, read_at, Style(every(4096), 6), threads, 1, lambda count: None)
    with file:
        file.seek(0)
        return file.read()


def verify(blob: bytes, toc_digest: str | None = None) -> LayerFindings:
    """What `lazyfs verify` finds in a blob, with the digest of its own TOC in the manifest."""
    offset = parse_footer(blob[-FOOTER_SIZE:], len(blob), "x")
    toc = read_toc_member(blob[offset:-FOOTER_SIZE], "x")
    annotations = {TOC_DIGEST: toc_digest or digest_of(toc)}
    descriptor = Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob), annotations, None, {})
    source = io.BytesIO(blob)
    diff_id = Digest("sha256:" + hashlib.sha256(gzip.decompress(blob)).hexdigest())
    with Spool(keep_blob=True) as spool:
        unpack(spool, source.read, descriptor, diff_id, lambda count: None)
        return verify_layer(spool, descriptor)


def with_toc(blob: bytes, change: Callable[[Toc], None]) -> bytes:
    """The blob with its TOC changed, and everything about it right again: what a hostile author would push."""
    offset = parse_footer(blob[-FOOTER_SIZE:], len(blob), "x")
    toc = json.loads(read_toc_member(blob[offset:-FOOTER_SIZE], "x"))
    change(toc)
    data = json.dumps(toc).encode()
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("stargz.index.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return blob[:offset] + compress_member(target.getvalue()) + build_footer(offset)


def entry(toc: Toc, name: str) -> dict[str, Any]:
    """The first entry of that name."""
    return next(each for each in toc["entries"] if each["name"].rstrip("/") == name)


BLOB = convert(tar_of_all_types())


def test_honest_layer_has_no_problems() -> None:
    """What the converter writes is sound."""
    findings = verify(BLOB)
    assert findings.problems == () and findings.lazy
    assert len(findings.entries) == 7 and findings.chunks == 4


def test_changed_toc_without_the_trick_is_found_as_well() -> None:
    """Rewriting the TOC and nothing else in it changes nothing: the helper itself is honest."""
    assert verify(with_toc(BLOB, lambda toc: None)).problems == ()


def _swap_names(toc: Toc) -> None:
    a, b = entry(toc, "d/b"), entry(toc, "soft")
    a["name"], b["name"] = b["name"], a["name"]


def _drop(toc: Toc) -> None:
    toc["entries"].remove(entry(toc, "null"))


def _add(toc: Toc) -> None:
    toc["entries"].append({"name": "extra", "type": "dir"})


def _other_content(toc: Toc) -> None:
    landmark, b = entry(toc, ".no.prefetch.landmark"), entry(toc, "d/b")
    b["offset"], b["size"] = landmark["offset"], landmark["size"]
    b["chunkDigest"] = b["digest"] = landmark["chunkDigest"]


def _between_members(toc: Toc) -> None:
    entry(toc, "d/b")["offset"] += 3


def _other_place(toc: Toc) -> None:
    entry(toc, "d/b")["innerOffset"] = 512


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda toc: entry(toc, "d/a").update(uid=0), "'d/a' has the uid 0 in the TOC and 7 in the tar"),
        (lambda toc: entry(toc, "d/a").update(mode=0o755), "'d/a' has the mode"),
        (lambda toc: entry(toc, "d/b").update(modtime="2023-11-14T22:13:25Z"), "'d/b' has the mtime_ns"),
        (lambda toc: entry(toc, "d/b").pop("xattrs"), "'d/b' has the xattrs"),
        (lambda toc: entry(toc, "soft").update(linkName="/etc/shadow"), "'soft' has the link"),
        (lambda toc: entry(toc, "d/hard").update(linkName="d/b"), "'d/hard' has the link"),
        (lambda toc: entry(toc, "null").update(devMinor=5), "'null' has the minor 5"),
        (_swap_names, "'soft' has the type"),
        (_drop, "'null' is in the tar and not in the TOC"),
        (_add, "'extra' is in the TOC and not in the tar"),
        (_other_content, "'d/b' has the size 1 in the TOC"),
        (_between_members, "where no gzip member begins"),
        (_other_place, "'d/b': the chunk at 0 has other bytes at its blob offset"),
    ],
)
def test_every_lie_of_a_toc_is_named(change: Callable[[Toc], None], words: str) -> None:
    """The TOC's digest is right, because its author chose it; its tree is not the tar's."""
    findings = verify(with_toc(BLOB, change))
    assert any(words in problem for problem in findings.problems), findings.problems


def test_times_that_a_peer_rounded_are_no_lie() -> None:
    """stargz-snapshotter writes whole seconds."""
    assert verify(with_toc(BLOB, lambda toc: entry(toc, "d/b").update(modtime="2023-11-14T22:13:20Z"))).problems == ()


def test_same_digest_other_tar_bytes() -> None:
    """A chunk whose digest is right at its offset, while the tar's own bytes are others."""
    offset = parse_footer(BLOB[-FOOTER_SIZE:], len(BLOB), "x")
    toc = json.loads(read_toc_member(BLOB[offset:-FOOTER_SIZE], "x"))
    start = entry(toc, "d/b")["offset"]
    member = bytes(inflate_member(BLOB[start:offset], 12, "x")[:12])
    assert member == b"content of b"
    forged = with_toc(BLOB, lambda toc: entry(toc, "d/b").update(chunkDigest=digest_of(b"CONTENT OF B")))
    assert any("'d/b': the chunk at 0 has other bytes in the tar" in problem for problem in verify(forged).problems)


def test_toc_without_annotation_is_a_problem() -> None:
    """A TOC that hashes to something else than the manifest says."""
    findings = verify(BLOB, toc_digest=digest_of(b"another TOC"))
    assert not findings.lazy and "should hash to" in findings.problems[0]


def test_hard_link_with_metadata_of_its_own() -> None:
    """Unpacking would change the file's owner, mounting lazily would not."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        file = tarfile.TarInfo("a")
        tar.addfile(file)
        link = tarfile.TarInfo("b")
        link.type, link.linkname, link.uid = tarfile.LNKTYPE, "a", 1000
        tar.addfile(link)
    plain = target.getvalue()
    data = json.dumps(
        {
            "version": 1,
            "entries": [{"name": "a", "type": "reg", "mode": 0o644}, {"name": "b", "type": "hardlink", "linkName": "a"}],
        }
    )
    body = compress_member(plain[: plain.rindex(b"ustar") - 257 + 512])
    blob = with_toc(
        body + BLOB[parse_footer(BLOB[-FOOTER_SIZE:], len(BLOB), "x") : -FOOTER_SIZE] + build_footer(len(body)),
        lambda toc: toc.update(json.loads(data)),
    )
    assert any("'b' is a hard link whose uid differs" in problem for problem in verify(blob).problems)


def blob_of(tar: bytes, entries: list[Toc]) -> bytes:
    """A blob whose tar and TOC were written by hand, each as its author likes."""
    body = compress_member(tar.rstrip(b"\0") + bytes(-len(tar.rstrip(b"\0")) % 512))
    toc = BLOB[parse_footer(BLOB[-FOOTER_SIZE:], len(BLOB), "x") : -FOOTER_SIZE]
    return with_toc(body + toc + build_footer(len(body)), lambda toc: toc.update(entries=entries))


def tar_of(*members: tarfile.TarInfo) -> bytes:
    """A tar of entries without data."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member)
    return target.getvalue()


def test_hard_link_with_xattrs_of_its_own() -> None:
    """Unpacking would give the file a capability that a lazy mount does not show."""
    link = tarfile.TarInfo("b")
    link.type, link.linkname = tarfile.LNKTYPE, "a"
    link.pax_headers = {"SCHILY.xattr.security.capability": "x"}
    listed = [{"name": "a", "type": "reg", "mode": 0o644}, {"name": "b", "type": "hardlink", "linkName": "a"}]
    problems = verify(blob_of(tar_of(tarfile.TarInfo("a"), link), listed)).problems
    assert len(problems) == 1 and "'b' is a hard link with xattrs" in problems[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", ".wh.a"], "'.wh.a' comes behind 'a' in the tar"),
        (["d/e/f", "d/.wh.e"], "'d/.wh.e' comes behind 'd/e' in the tar"),
        ([".wh.a", "a"], ""),
        (["d/a", "d/.wh..wh..opq"], ""),
    ],
)
def test_whiteout_behind_what_it_would_remove(names: list[str], words: str) -> None:
    """The names are the same in tar and TOC; only their order makes two trees of them."""
    listed = [{"name": name, "type": "reg", "mode": 0o644} for name in names]
    problems = verify(blob_of(tar_of(*map(tarfile.TarInfo, names)), listed)).problems
    assert len(problems) == bool(words) and all(words in problem for problem in problems), problems


def test_tar_that_implies_more_directories_than_anybody_can_hold() -> None:
    """Its size is not a measure of what it would cost to merge."""
    names = [f"{number}/" + "a/" * 2000 + "f" for number in range(200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazyfs.format.toc_raw.MAX_ENTRIES", 100_000)
        problems = verify(blob_of(tar_of(*map(tarfile.TarInfo, names)), [])).problems
    assert len(problems) == 1 and "implies more directories" in problems[0]


def test_a_layer_of_another_dialect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its chunks are decoded as the dialect says, and held against the tar as well."""
    monkeypatch.setattr(dialects, "DIALECTS", (FRONT, *dialects.DIALECTS))
    lie = with_toc(BLOB, lambda toc: entry(toc, "d/b").update(innerOffset=1))
    for blob, words in ((BLOB, ()), (lie, ("'d/b': the chunk at 0 has other bytes at its blob offset",))):
        path = tmp_path / "blob"
        path.write_bytes(blob)
        made = fronted(path)
        descriptor = Descriptor(OCI_LAYER_ZSTD, digest_of(made.blob), len(made.blob), made.annotations, None, {})
        with Spool(keep_blob=True) as spool:
            unpack(spool, io.BytesIO(made.blob).read, descriptor, Digest(made.diff_id), lambda count: None)
            findings = verify_layer(spool, descriptor)
        assert findings.lazy and findings.chunks
        assert len(findings.problems) == len(words)
        assert all(word in problem for word, problem in zip(words, findings.problems, strict=True)), findings.problems
