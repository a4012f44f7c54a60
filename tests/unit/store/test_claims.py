"""Claims on chunks: one holder among processes, released by the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lazyfs.store.claims import Claims
from tests.unit.store.contents import noise

FIRST, SECOND = noise(32, 1), noise(32, 2)

HOLDER = """
import sys
from pathlib import Path
from lazyfs.store.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.claim(bytes.fromhex(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def test_a_chunk_has_one_claimant(tmp_path: Path) -> None:
    """The second claimant is refused until the first releases it. Other chunks are free, and a claim may be repeated."""
    mine, other = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    assert mine.claim(FIRST)
    assert mine.claim(FIRST)
    assert not other.claim(FIRST)
    assert other.claim(SECOND)
    mine.release(FIRST)
    assert other.claim(FIRST)
    mine.close()
    other.close()


def test_the_ends_of_the_range_can_be_claimed(tmp_path: Path) -> None:
    """Digests of all zeros and all ones have their own bytes in the file, apart from the opening lock."""
    mine, other = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    with mine.opening():
        assert other.claim(bytes(32))
        assert other.claim(b"\xff" * 32)
    mine.close()
    other.close()


def test_a_killed_process_claims_nothing(tmp_path: Path) -> None:
    """SIGKILL releases the claim at once."""
    path = tmp_path / "claims"
    claims = Claims(path)
    command = [sys.executable, "-c", HOLDER, str(path), FIRST.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        assert not claims.claim(FIRST)
        process.kill()
        process.wait()
        assert claims.claim(FIRST)
    claims.close()
