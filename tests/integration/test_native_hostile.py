"""Images that mean ill, mounted natively beside others: what they say reaches nothing outside of themselves."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lazyfs.cli.main import main
from lazyfs.format.member import compress_member
from tests.bad.oci import Json, Oci, sha256, tar_of
from tests.commands import Lazyfs, run
from tests.lazyfsd import object_name
from tests.readers import Readers
from tests.small_image import build_of

pytestmark = [pytest.mark.fuse, pytest.mark.root]

SECRET = b"what another image holds, and nobody else may read\n" * 20
OWN = b"what the hostile image says is its own, as long as that" * 20
CHUNK = 4096

Prepare = Callable[[Oci], str]


@pytest.fixture
def victim(lazyfs: Lazyfs, tmp_path: Path) -> Iterator[Path]:
    """The mount of an image that has a secret, which is in the store."""
    image = build_of(tmp_path / "victim", {"secret": SECRET})
    with lazyfs.mounted(image.converted, "--background", "off", mode="native") as root:
        assert (root / "secret").read_bytes() == SECRET
        yield root


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **xattrs: str) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member with attributes `trusted.overlay.NAME`; `__` in a name stands for a dot."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755
    info.pax_headers = {f"SCHILY.xattr.trusted.overlay.{key.replace('__', '.')}": value for key, value in xattrs.items()}
    return info, data


def lazily(oci: Oci) -> str:
    """The image, converted."""
    target = oci.path.with_name("converted")
    assert main(["convert", f"oci:{oci.path}:v1", f"oci:{target}:v1"]) == 0
    return f"oci:{target}:v1"


def wholly(oci: Oci) -> str:
    """The image as it is."""
    return f"oci:{oci.path}:v1"


@pytest.mark.parametrize("prepared", [lazily, wholly])
def test_overlay_attributes_of_a_layer(prepared: Prepare, lazyfs: Lazyfs, victim: Path, tmp_path: Path) -> None:
    """What a layer says in overlayfs's own words is data: no byte of another image, nothing hidden, nothing shown elsewhere."""
    aim = f"/{object_name(SECRET)}"
    oci = Oci(tmp_path / "hostile")
    lower = tar_of(
        member("empty", metacopy="", redirect=aim),
        member("sized", OWN, metacopy="", redirect=aim),
        member("escaped", OWN, overlay__metacopy="", overlay__redirect=aim),
        member("dir", kind=tarfile.DIRTYPE),
        member("dir/below", OWN),
        member("other", kind=tarfile.DIRTYPE),
    )
    upper = tar_of(
        member("dir", kind=tarfile.DIRTYPE, opaque="y"),
        member("other", kind=tarfile.DIRTYPE, redirect="/dir"),
        member("white", whiteout=""),
        member("third", kind=tarfile.DIRTYPE, opaque="x"),
        member("link", OWN, metacopy="", redirect="/dir/below"),
    )
    oci.image(oci.plain(lower), oci.plain(upper))
    with lazyfs.mounted(prepared(oci), "--background", "off", mode="native") as root:
        assert (root / "empty").read_bytes() == b""
        for name in ("sized", "escaped", "dir/below", "link"):
            assert (root / name).read_bytes() == OWN
        assert os.listdir(root / "other") == os.listdir(root / "third") == []
        assert (root / "white").is_file()
        run("cp", "-a", root, tmp_path / "copy")
        # They are there to be seen, as any other attribute.
        assert os.getxattr(root / "sized", "trusted.overlay.redirect") == aim.encode()
        assert os.getxattr(root / "escaped", "trusted.overlay.overlay.redirect") == aim.encode()
        assert os.getxattr(root / "dir", "trusted.overlay.opaque") == b"y"
    assert (victim / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("prepared", [lazily, wholly])
def test_a_file_at_the_path_of_an_object(prepared: Prepare, lazyfs: Lazyfs, victim: Path, tmp_path: Path) -> None:
    """An image with a name of an object in its root, another's file's or its own, is mounted portably, or not at all."""
    oci = Oci(tmp_path / "hostile")
    oci.image(oci.plain(tar_of(member(object_name(SECRET), OWN))), oci.plain(tar_of(member("secret", SECRET))))
    image = prepared(oci)
    directory = tmp_path / "root"
    directory.mkdir()
    done = lazyfs.run("mount", image, directory, "--store", lazyfs.store, "--mode", "native", code=5)
    assert object_name(SECRET) in done.stderr.decode()
    assert not directory.is_mount()
    with lazyfs.mounted(image, mode="auto") as root:
        assert (root / "secret").read_bytes() == SECRET
        assert (root / object_name(SECRET)).read_bytes() == OWN
        assert lazyfs.json("status", root)["mode"] == "portable"
    assert (victim / "secret").read_bytes() == SECRET


def test_a_writer_at_the_path_of_an_object(lazyfs: Lazyfs, reader: Readers, tmp_path: Path) -> None:
    """What is written into a mount under an object's name, or with overlayfs's attributes, changes no other file."""
    image = build_of(tmp_path / "image", {"one": SECRET, "two": OWN, "three": OWN[:-1]})
    upper = tmp_path / "upper"
    with lazyfs.mounted(image.converted, "--background", "off", "--rw", upper, mode="native") as root, reader:
        (root / object_name(SECRET)).write_bytes(b"planted")
        (root / "new").write_bytes(b"new")
        os.setxattr(root / "new", "trusted.overlay.metacopy", b"")
        os.setxattr(root / "new", "trusted.overlay.redirect", f"/{object_name(OWN)}".encode())
        os.setxattr(root / "three", "trusted.overlay.redirect", f"/{object_name(OWN)}".encode())
        reader(root, image.files).check()
    with lazyfs.mounted(image.converted, "--background", "off", "--rw", upper, mode="native") as root, reader:
        reader(root, image.files | {"new": b"new", object_name(SECRET): b"planted"}).check()


def claiming(path: Path, data: Sequence[bytes], *, claimed: bytes = b"", digests: Sequence[bytes] = (), size: int = 0) -> str:
    """An image of one file `file`, whose chunks are `data`: a lazy layer that says its digest is that of `claimed`.

    Chunks are said to be those whose digests are of `digests`, and the last of them to be `size` bytes longer than it is.
    """
    oci = Oci(path)
    entries: list[Json] = []
    blob = b""
    offset = 0
    for number, (chunk, said) in enumerate(zip(data, digests or data, strict=True)):
        length = len(chunk) + (size if number == len(data) - 1 else 0)
        entry: Json = {
            "name": "file",
            "offset": len(blob),
            "chunkOffset": offset,
            "chunkDigest": sha256(said),
            "chunkSize": length,
        }
        kind = {"type": "chunk"} if number else {"type": "reg", "mode": 0o644, "digest": sha256(claimed or b"".join(data))}
        entries.append(entry | kind)
        offset += length
        blob += compress_member(chunk + bytes(600))
    entries[0]["size"] = offset
    oci.image(oci.lazy(entries, blob))
    return f"oci:{path}:v1"


@contextmanager
def all_mounted(lazyfs: Lazyfs, images: Sequence[str]) -> Iterator[list[Path]]:
    with ExitStack() as stack:
        yield [stack.enter_context(lazyfs.mounted(image, "--background", "off", mode="native")) for image in images]


SEVERAL = [hashlib.sha256(b"%d" % number).digest() * (CHUNK // 32) for number in range(3)]
OTHERS = [hashlib.sha256(b"other %d" % number).digest() * (CHUNK // 32) for number in range(3)]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("count", [1, 3])
def test_two_images_claim_one_digest(count: int, order: int, lazyfs: Lazyfs, tmp_path: Path, reader: Readers) -> None:
    """A file's digest is a claim: of two images that make the same one for different chunks, each shows its own."""
    mine, theirs = SEVERAL[:count], OTHERS[:count]
    images = [claiming(tmp_path / "1", mine), claiming(tmp_path / "2", theirs, claimed=b"".join(mine))]
    with all_mounted(lazyfs, images) as roots, reader:
        for root, data in list(zip(roots, (mine, theirs), strict=True))[::order] * 2:
            reader(root, {"file": b"".join(data)}).check()


@pytest.mark.parametrize("longer", [0, 100, -100])
@pytest.mark.parametrize("count", [1, 3])
def test_an_image_that_lies_about_chunks(count: int, longer: int, lazyfs: Lazyfs, tmp_path: Path, reader: Readers) -> None:
    """A blob that does not hold what its TOC says, or as much: that file cannot be read, and an honest image's of the same digest can."""
    true = SEVERAL[:count]
    liar = claiming(tmp_path / "liar", true if longer else OTHERS[:count], digests=true, size=longer)
    honest = claiming(tmp_path / "honest", true)
    asked = {"file": b"".join(true)}
    with all_mounted(lazyfs, [liar]) as (lies,), reader:
        assert reader(lies, asked).report().away == ["file"]
        with all_mounted(lazyfs, [honest]) as (tells,), reader:
            reader(tells, asked).check()
            report = reader(lies, asked).report()
            # Of the same name, it is the same object by now, and its bytes are verified.
            assert report.away if longer else report.right
            reader(tells, asked).check()
