"""The layers of `edge`: everything that file systems and tars may hold and ordinary images rarely do.

The first is a script like any other, so that its whiteouts and opaque directories are what overlayfs makes of `rm` and
`mkdir`. The second is a tar written entry by entry: directories it implies without naming them, a GNU sparse member, a
name that is whited out and created in one layer, a name that comes twice.
"""

from __future__ import annotations

import io
import random
import tarfile
from typing import Any, cast

from tests.images.layer import LayerFile

MTIME = 1_700_000_000

SCRIPT = r"""set -e
rm -rf /usr/share/doc /usr/share/man                                # a directory made anew is opaque
mkdir /usr/share/doc && echo only > /usr/share/doc/only
rm /etc/debian_version && rm -r /usr/share/zoneinfo/Africa          # whiteouts
mv /usr/share/zoneinfo/Europe/Berlin /usr/share/zoneinfo/Berlin2
mkdir -p /edge/d && cd /edge && python3 - <<'P'
import os, random
os.mkdir('many')
for i in range(5000):
    with open(f'many/f{i:05d}', 'w') as f: f.write('x' * (i % 300))
def put(name, data=b'x'):
    with open(name, 'wb') as f: f.write(data)
long = 'n' * 255
put(long); os.symlink(long, 'link-to-long')
deep = 'deep/' + '/'.join(['d' * 60] * 20)
os.makedirs(deep); put(deep + '/leaf')
put('h1', b'hard' * 1000); os.link('h1', 'h2'); os.link('h1', 'd/h3')
os.setxattr('h1', 'user.k', b'v\x00bin'); os.chown('h1', 4_000_000_000, 4_294_967_294)
put('uni-\u00e9\u4e2d\U0001f600'); put(b'latin1-\xe9', b'one name that is not UTF-8'); put(b'latin1-\xea', b'and its sibling')
with open('hole', 'wb') as f: f.truncate(64 << 20); f.seek(32 << 20); f.write(b'mid')
put('big', random.Random(3).randbytes(20 << 20)); put('empty', b'')
put('su'); os.chmod('su', 0o6755); os.chmod('d', 0o1777)
put('owned'); os.chown('owned', 12345, 2_000_000_000)
os.mkfifo('fifo'); os.mknod('chr', 0o20666, os.makedev(1, 3)); os.mknod('blk', 0o60660, os.makedev(7, 300))
put('cap'); os.setxattr('cap', 'security.capability', bytes.fromhex('0100000200200000000000000000000000000000'))
os.symlink('/nonexistent/abs', 'dangling'); os.symlink('../etc/hostname', 'rel'); os.symlink(b'to-\xff\xfe', 'to-bytes')
os.mkdir('private', 0o700); put('private/x'); os.chown('private', 33, 33); os.setxattr('private', 'user.of', b'the lower layer')
os.mkdir('again'); put('again/old'); put('again/keep', b'lower'); put('again/gone')
os.mkdir('swap'); put('swap/below'); put('twice', b'lower')
os.utime('empty', (0, 0)); os.utime('su', (2**33, 2**33)); os.utime('cap', ns=(1_700_000_000_123_456_789,) * 2)
os.utime('owned', ns=(-4_750_000_001,) * 2); os.utime('link-to-long', ns=(-5 * 10**9,) * 2, follow_symlinks=False)
os.utime('private', ns=(1_600_000_000_500_000_000,) * 2); os.utime('d', ns=(-1,) * 2)
P
"""


def write_by_hand(file: LayerFile) -> None:
    """The tar that no file system yields."""
    with tarfile.open(
        fileobj=cast(Any, file), mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:

        def add(
            name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, pax: dict[str, str] | None = None
        ) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.mtime, member.size = kind, mode, MTIME, len(data)
            member.pax_headers = pax or {}
            tar.addfile(member, io.BytesIO(data))

        add("edge/private/y", b"its parent is named in the layer below only")
        add("edge/again", kind=tarfile.DIRTYPE, mode=0o750)
        add("edge/again/.wh..wh..opq", mode=0)
        add("edge/again/.wh.gone", mode=0)
        add("edge/again/keep", b"upper")
        add("edge/.wh.swap", mode=0)
        add("edge/swap", b"a file where a directory was")
        add("edge/twice", b"the first of two")
        add("edge/twice", b"the last wins", mode=0o600)
        # A sparse file a thousand times larger than its layer's blob is refused: something has to give the blob a size.
        add("edge/noise", random.Random(4).randbytes(64 << 10))
        pieces = [(0, b"head"), (1 << 20, b"middle" * 100), ((3 << 20) - 4, b"tail")]
        map_text = f"{len(pieces)}\n" + "".join(f"{offset}\n{len(data)}\n" for offset, data in pieces)
        body = map_text.encode() + b"\0" * (-len(map_text) % 512) + b"".join(data for _, data in pieces)
        sparse = {"major": "1", "minor": "0", "name": "edge/sparse", "realsize": str(3 << 20)}
        add("edge/GNUSparseFile.0/sparse", body, pax={f"GNU.sparse.{key}": value for key, value in sparse.items()})
