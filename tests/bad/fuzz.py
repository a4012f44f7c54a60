"""`python -m tests.bad.fuzz TARGET SECONDS SEED FOLDER`: feed one parser mutated input until its processor time is up.

Each round makes its input of a seed alone. Every seed has at most ALLOWED_S seconds of processor time and ALLOWED_BYTES more memory than
there was; a round that needs more fails, and so does one that raises what is not an error of ours. The last line names the seed.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zstandard

from lazyfs.errors import LazyfsError
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Chunk, Entry
from lazyfs.format.footer import build_footer, parse_footer
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, parse_config, parse_document
from lazyfs.format.member import compress_member, inflate_member
from lazyfs.format.pax import record
from lazyfs.format.tar import read_tar
from lazyfs.format.tar_header import END_OF_TAR, header_bytes
from lazyfs.format.toc import parse_toc
from lazyfs.format.toc_json import encode_toc
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.plan import plan_layer
from lazyfs.layertar.spool import Spool, unpack
from lazyfs.layertar.tree import LowerTree
from lazyfs.vfs.tree import Tree as MergedTree
from tests.tars import header, padded
from tests.toc_member import read_toc_member

ALLOWED_S: Final = 4.0
ALLOWED_BYTES: Final = 150 << 20
INTERESTING: Final = (0, 1, -1, 255, 256, 4095, 4096, 65535, 1 << 31, (1 << 32) - 1, 1 << 62, -(1 << 63), 1 << 64, 10**30)
TOKENS: Final = (
    b"null", b"{}", b"[]", b'""', b"-1", b"1e999", b"0", b"true", b'"\\ud800"', b"\xff", b"..", b"/", b"/../", b".wh.", b".wh..wh..opq",
    b"GNU.sparse.map", b"GNU.sparse.major", b"9" * 40, b"\0", b"{" * 2000, b'"name":', b'"type":"chunk"', b'"offset":-5',
)  # fmt: skip
Round = Callable[[random.Random, Path], None]


def mutated(data: bytes, rnd: random.Random) -> bytes:
    """`data` with a few changes of the kinds that break parsers."""
    raw = bytearray(data)
    for _ in range(rnd.choice((1, 1, 2, 4, 16))):
        at = rnd.randrange(len(raw) + 1)
        end = min(len(raw), at + rnd.choice((1, 2, 8, 64, 512)))
        match rnd.randrange(7):
            case 0 if raw:
                raw[at % len(raw)] ^= 1 << rnd.randrange(8)
            case 1:
                raw[at:end] = rnd.randbytes(end - at)
            case 2:
                del raw[at:end]
            case 3:
                raw[at:at] = raw[at:end] * rnd.choice((1, 2, 50, 2000))
            case 4:
                raw[at:end] = rnd.choice(TOKENS)
            case 5:
                raw[at:end] = str(rnd.choice(INTERESTING)).encode()
            case _:
                other = rnd.randrange(len(raw) + 1)
                raw[at:at] = raw[other : other + 512]
        del raw[4 << 20 :]
    return bytes(raw)


def toc_round(rnd: random.Random, _: Path) -> None:
    """A TOC, alone and in its member; what is accepted can be merged."""
    count = rnd.choice((1, 5, 50))
    entries = [
        Entry(
            f"d{n % 3}/f{n}".encode(), "reg", size=10, chunks=(Chunk(0, 10, bytes(32), n, 0, n + 1),), xattrs=((b"user.a", b"b"),)
        )
        for n in range(count)
    ]
    entries += [Entry(b"d0/l", "symlink", link=b"f0"), Entry(b"d0/h", "hardlink", link=b"d0/f0"), Entry(b"c", "char", major=1)]
    data = mutated(encode_toc(entries, {}), rnd)
    footer = mutated(build_footer(count), rnd)
    guarded(lambda: parse_footer(footer[-51:], rnd.choice((51, 60, 1 << 40)), "x"))
    parsed = guarded(lambda: parse_toc(data, rnd.choice((count, 1 << 40)), "x", arrived=len(gzip.compress(data, 1))))
    if parsed is not None:
        MergedTree([parsed, parsed])
    inner = header_bytes(Entry(b"stargz.index.json", "reg", size=len(data))) + data
    member = mutated(compress_member(mutated(inner, rnd) if rnd.random() < 0.5 else inner, 1), rnd)
    guarded(lambda: read_toc_member(member, "x"))


def tar_round(rnd: random.Random, _: Path) -> None:
    """A tar; what is accepted can be placed and planned, twice over each other."""
    pax = record(b"path", b"p" * 120) + record(b"SCHILY.xattr.user.a", b"\0\n") + record(b"mtime", b"1.5")
    sparse = record(b"GNU.sparse.size", b"1000") + record(b"GNU.sparse.map", b"0,3,500,2")
    parts = [
        header(b"d/", b"5"), header(b"d/f", b"0", 5) + padded(b"abcde"), header(b"d/l", b"2", link=b"../d"), header(b"h", b"1", link=b"d/f"),
        header(b"x", b"x", len(pax)) + padded(pax) + header(b"a"), header(b"x", b"x", len(sparse)) + padded(sparse) + header(b"s", b"0", 5) + padded(b"abcde"),
        header(b"x", b"L", 200) + padded(b"n/" * 100) + header(b"b"), header(b"d/.wh.f"), header(b"d/.wh..wh..opq"), header(b"g", b"g", 0),
    ]  # fmt: skip
    rnd.shuffle(parts)
    data = b"".join(parts) + END_OF_TAR
    data = fixed(mutated(data, rnd), rnd)

    def place() -> None:
        tree = LowerTree()
        for layer in range(2):
            members = tuple(read_tar(lambda offset, size: data[offset : offset + size], len(data), len(data) // 10, "x"))
            plan_layer(index_layer(tree, members, layer, "x"))

    guarded(place)


def fixed(data: bytes, rnd: random.Random) -> bytes:
    """Most blocks that look like headers get a right checksum again: else nothing behind the first change is ever read."""
    raw = bytearray(data)
    for at in range(0, len(raw) - 511, 512):
        block = raw[at : at + 512]
        if block[156:157] in b"\x00125xLKgS0" and any(block[:100]) and rnd.random() < 0.9:
            block[148:156] = b" " * 8
            raw[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(raw)


def manifest_round(rnd: random.Random, _: Path) -> None:
    """Manifests, indexes and configs."""
    descriptor = {"mediaType": OCI_LAYER_GZIP, "digest": digest_of(b"a"), "size": 5, "annotations": {"a": "b"}}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": [descriptor] * 3}
    index = {"schemaVersion": 2, "manifests": [descriptor | {"platform": {"os": "linux", "architecture": "amd64"}}] * 3}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(b"a")] * 3},
        "history": [{}],
    }
    document = mutated(json.dumps(rnd.choice((manifest, index))).encode(), rnd)
    guarded(lambda: parse_document(rnd.choice(("", OCI_MANIFEST, "text/html")), document, "x"))
    guarded(lambda: parse_config(mutated(json.dumps(config).encode(), rnd), "x"))


def member_round(rnd: random.Random, _: Path) -> None:
    """One gzip member, of which some length is wanted."""
    data = rnd.choice((b"", b"abc", bytes(2_000_000), rnd.randbytes(5000)))
    packed = mutated(gzip.compress(data, 1) if rnd.random() < 0.5 else compress_member(data), rnd)
    length = rnd.choice((0, len(data), len(data) + 1, rnd.choice(INTERESTING), rnd.randrange(8_000_000)))
    found = guarded(lambda: inflate_member(packed, length, "x"))
    assert found is None or len(found) >= length


def spool_round(rnd: random.Random, folder: Path) -> None:
    """A whole layer in any compression: members with extra fields, frames that are skipped, broken ones."""
    tar = rnd.choice((b"", bytes(1_000_000), rnd.randbytes(3000) * 10))
    extra = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + (30_000).to_bytes(2, "little") + bytes(30_000)
    skipped = b"\x50\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"123456789"
    blob = rnd.choice(
        (
            gzip.compress(tar, 1) * rnd.choice((1, 3, 300)),
            extra + gzip.compress(tar, 1)[10:],
            skipped * rnd.choice((1, 50)) + zstandard.compress(tar) * rnd.choice((1, 3)),
            tar,
        )
    )
    blob = mutated(blob, rnd)
    layer = Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob), {}, None, {})
    position = 0

    def pull(count: int) -> bytes:
        nonlocal position
        position += count
        return blob[position - count : position]

    with Spool(keep_blob=rnd.random() < 0.5, folder=str(folder)) as spool:
        guarded(lambda: unpack(spool, pull, layer, digest_of(tar), lambda _: None))
        assert spool.size <= max(1 << 30, 1032 * len(blob)) + (8 << 20)


def guarded(call: Callable[[], object]) -> object:
    """What `call` returns, or None where it raises an error of ours, which is one line, and no long one."""
    try:
        return call()
    except LazyfsError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 3000, text[:500]
        return None


ROUNDS: Final[dict[str, Round]] = {
    "toc": toc_round,
    "tar": tar_round,
    "manifest": manifest_round,
    "member": member_round,
    "spool": spool_round,
}


def resident() -> int:
    """The most memory that this process has had since it was last forgotten."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def main(target: str, seconds: float, seed: int, folder: Path) -> int:
    rounds = 0
    while time.process_time() < seconds:
        Path("/proc/self/clear_refs").write_text("5")
        before, began = resident(), time.process_time()
        try:
            ROUNDS[target](random.Random(seed), folder)
        except BaseException:
            print(f"{target}: seed {seed}")
            raise
        took, more = time.process_time() - began, resident() - before
        if took > ALLOWED_S or more > ALLOWED_BYTES:
            print(f"{target}: seed {seed} took {took:.1f} s and {more >> 20} MiB")
            return 1
        seed += 1
        rounds += 1
    print(f"{target}: {rounds} rounds, up to seed {seed}")
    return 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[4]) as name:
        os.environ["TMPDIR"] = name
        sys.exit(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(name)))
