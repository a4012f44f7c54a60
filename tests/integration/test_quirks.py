"""Registries as they are: what skopeo and containerd both accept, lazyfs accepts.

A differential test over tests/quirk_table.py. Debian's programs and lazyfs each get a registry of their own with the row's quirk. lazyfs
converts, and mounts what was converted and what was not; every byte is compared. The default tier believes the table about the peers,
but for some rows; the slow tier asks them for every row.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.commands import run
from tests.containerd import Containerd
from tests.prefork import Prefork
from tests.push_table import PUSHES
from tests.quirk_table import PULLS, Row
from tests.quirky_registry import CREDENTIALS, QuirkyRegistry, serving
from tests.small_image import SmallImage, build_of

pytestmark = [pytest.mark.containerd, pytest.mark.registry, pytest.mark.fuse]

AT_ONCE = 2
"""Rows that are tried at the same time: what they do is mostly to wait for processes."""
PATIENCE_S = 60


class Outcome(NamedTuple):
    """What became of one client."""

    ok: bool
    said: str


class Verdict(NamedTuple):
    """What became of one row: the peers, and what lazyfs did."""

    peers: dict[str, Outcome]
    ours: dict[str, Outcome]


class Laboratory:
    """The images, the peers, and a place for what they make."""

    def __init__(self, folder: Path, containerd: Containerd, beside: QuirkyRegistry, authority: Path) -> None:
        self._folder, self._containerd, self._beside = folder, containerd, beside
        self._lazyfs = Prefork(folder / "home")
        self._environment = {"SSL_CERT_FILE": str(authority)}
        draw = random.Random(1)
        small = {f"small-{number}": draw.randbytes(500 + number) for number in range(10)}
        # Above the bounds from which a blob is fetched in several ranges, and not read through to get to its end.
        large = {"large": draw.randbytes(4500 << 10), "other": draw.randbytes(100_000)}
        self._images = {False: build_of(folder / "documents", small), True: build_of(folder / "blobs", small, large)}
        self._local = ""
        self._fetching = threading.Lock()
        self._numbers = itertools.count()

    def pull(self, row: Row, *, with_peers: bool) -> Verdict:
        """Try a row."""
        image = self._images[row.large]
        peers = {"skopeo": self._skopeo_pulls, "containerd": self._containerd_pulls} if with_peers else {}
        found = {name: self._with(row, image.original, client, image) for name, client in peers.items()}
        ours = {
            "convert": self._with(row, image.original, self._converts, image),
            "mount": self._with(row, image.layout, self._mounts, image),
        }
        if row.blobs:  # a document is the same to all commands
            ours["mount, unconverted"] = self._with(row, image.original, self._mounts, image)
        return Verdict(found, ours)

    def push(self, row: Row, *, with_peers: bool) -> Verdict:
        """Try a row."""
        image = self._images[False]
        peers = {"skopeo": self._skopeo_pushes, "containerd": self._containerd_pushes} if with_peers else {}
        found = {name: self._with(row, None, client, image) for name, client in peers.items()}
        return Verdict(found, {"convert": self._with(row, None, self._pushes, image)})

    def _with(
        self, row: Row, path: Path | None, client: Callable[[QuirkyRegistry, Path, Row, SmallImage], Outcome], image: SmallImage
    ) -> Outcome:
        registry = QuirkyRegistry(path, row.quirk(), tokens=row.tokens, credentials=row.credentials, beside=self._beside)
        place = self._folder / f"client-{next(self._numbers)}"
        place.mkdir()
        try:
            with serving(registry):
                return client(registry, place, row, image)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _skopeo_pulls(self, registry: QuirkyRegistry, place: Path, row: Row, image: SmallImage) -> Outcome:
        credentials = ["--src-creds", CREDENTIALS] if row.credentials else ["--src-no-creds"]
        command = ["--src-tls-verify=false", *credentials, f"docker://{registry.image}", f"dir:{place}/pulled"]
        return _peer("skopeo", "copy", "--quiet", "--insecure-policy", *command)

    def _skopeo_pushes(self, registry: QuirkyRegistry, place: Path, row: Row, image: SmallImage) -> Outcome:
        command = ["--dest-tls-verify=false", "--dest-no-creds", f"oci:{image.original}:v1", f"docker://{registry.image}"]
        return _kept(registry, _peer("skopeo", "copy", "--quiet", "--insecure-policy", "--preserve-digests", *command))

    def _containerd_pulls(self, registry: QuirkyRegistry, place: Path, row: Row, image: SmallImage) -> Outcome:
        credentials = ["--user", CREDENTIALS] if row.credentials else []
        return self._ctr(place.name, "content", "fetch", "--plain-http", "--skip-verify", *credentials, registry.image)

    def _containerd_pushes(self, registry: QuirkyRegistry, place: Path, row: Row, image: SmallImage) -> Outcome:
        with self._fetching:  # rows are tried at the same time
            if not self._local:
                with serving(QuirkyRegistry(image.original)) as source:
                    assert self._ctr("push", "content", "fetch", "--plain-http", source.image).ok
                    self._local = source.image
        return _kept(registry, self._ctr("push", "images", "push", "--plain-http", registry.image, self._local))

    def _ctr(self, namespace: str, *command: str) -> Outcome:
        done = self._containerd.ctr("--namespace", namespace, *command, code=None, timeout=PATIENCE_S)
        return Outcome(not done.returncode, done.stderr.decode(errors="replace")[-2000:])

    def _converts(self, registry: QuirkyRegistry, place: Path, row: Row, image: SmallImage) -> Outcome:
        return self._run(place, row, "convert", f"docker://{registry.image}", f"oci:{place}/converted:v1")

    def _pushes(self, registry: QuirkyRegistry, place: Path, row: Row, image: SmallImage) -> Outcome:
        return _kept(registry, self._run(place, row, "convert", f"oci:{image.original}:v1", f"docker://{registry.image}"))

    def _mounts(self, registry: QuirkyRegistry, place: Path, row: Row, image: SmallImage, options: Sequence[str] = ()) -> Outcome:
        directory = place / "mount"
        directory.mkdir()
        options = ["--store", str(place / "store"), "--mode", "portable", "--background", "off", *options]
        outcome = self._run(place, row, "mount", f"docker://{registry.image}", directory, *options)
        if not outcome.ok:
            return outcome
        try:
            wrong = [name for name, data in image.files.items() if (directory / name).read_bytes() != data]
        except OSError as error:
            return Outcome(False, f"{outcome.said}\n{error}")
        finally:
            run("umount", directory)
        return Outcome(not wrong, f"{outcome.said}\nwrong bytes in {wrong}" if wrong else outcome.said)

    def mounts(self, row: Row, *options: str) -> Outcome:
        """A mount of the converted image, with these options."""
        image = self._images[row.large]
        return self._with(row, image.layout, partial(self._mounts, options=options), image)

    def _run(self, place: Path, row: Row, *command: str | Path) -> Outcome:
        credentials = ["--creds", CREDENTIALS] if row.credentials else []
        said = place / "said"
        code = self._lazyfs.run(*command, *credentials, said=said, environment=self._environment, timeout=PATIENCE_S)
        text = said.read_text(errors="replace") if said.exists() else ""
        assert "Traceback" not in text, text
        return Outcome(code == 0, f"exit {code}: {text[-2000:]}")


def _peer(*command: str) -> Outcome:
    done = run("timeout", str(PATIENCE_S), *command, code=None, timeout=2 * PATIENCE_S)
    return Outcome(not done.returncode, done.stderr.decode(errors="replace")[-2000:])


def _kept(registry: QuirkyRegistry, outcome: Outcome) -> Outcome:
    """Whoever says that it has pushed has."""
    return outcome if "v1" in registry.pushed or not outcome.ok else Outcome(False, "there is no v1 in the registry")


@pytest.fixture(scope="module")
def laboratory(session_folder: Path) -> Iterator[Laboratory]:
    """One containerd, one token server with TLS, one set of images for all rows."""
    folder = session_folder / "quirks"
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with serving(QuirkyRegistry(None), tls) as beside, Containerd(folder / "c") as containerd:
        yield Laboratory(folder, containerd, beside, folder / "ca.pem")


@pytest.fixture(scope="module")
def verdicts(laboratory: Laboratory, request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Verdict]]]:
    """Of every row that was selected, in the order of the tests; several are tried at once."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = {}
        for item in request.session.items:
            if (
                item.module is request.module
                and isinstance(item, pytest.Function)
                and "row" in getattr(item, "callspec", item).params
            ):
                row = item.callspec.params["row"]
                attempt = laboratory.push if "push" in item.originalname else laboratory.pull
                found[item.originalname, row.name] = threads.submit(attempt, row, with_peers="peers" in item.originalname)
        yield found
        threads.shutdown(cancel_futures=True)


SAMPLE = 12
"""In the default tier the peers are asked for one row in so many."""


def _of_every_day(row: Row) -> bool:
    """What a peer refuses, and what is one of several of a kind, is not."""
    return not row.slow and (row.required or not row.refused_by)


def rows(table: list[Row], *, peers: bool) -> list[object]:
    """As parameters: for the peers as well, all of them; for lazyfs alone, those that it has to manage."""
    chosen = [row for row in table if peers or _of_every_day(row)]
    daily = [row for row in table if _of_every_day(row)]
    quick = daily[::SAMPLE] if peers else daily
    return [
        pytest.param(row, id=row.name.encode("unicode_escape").decode(), marks=[] if row in quick else [pytest.mark.slow])
        for row in chosen
    ]


@pytest.mark.parametrize("row", rows(PULLS, peers=False))
def test_pull(row: Row, verdicts: dict[tuple[str, str], Future[Verdict]]) -> None:
    """Convert, mount of the converted image, and of the unconverted one."""
    judge_ours(verdicts["test_pull", row.name].result())


@pytest.mark.parametrize("row", rows(PUSHES, peers=False))
def test_push(row: Row, verdicts: dict[tuple[str, str], Future[Verdict]]) -> None:
    """Convert from a layout."""
    judge_ours(verdicts["test_push", row.name].result())


@pytest.mark.parametrize("row", rows(PULLS, peers=True))
def test_pull_beside_the_peers(row: Row, verdicts: dict[tuple[str, str], Future[Verdict]]) -> None:
    """The table is right about them, and lazyfs manages what they do."""
    judge(row, verdicts["test_pull_beside_the_peers", row.name].result())


@pytest.mark.parametrize("row", rows(PUSHES, peers=True))
def test_push_beside_the_peers(row: Row, verdicts: dict[tuple[str, str], Future[Verdict]]) -> None:
    """The table is right about them, and lazyfs manages what they do."""
    judge(row, verdicts["test_push_beside_the_peers", row.name].result())


def judge(row: Row, verdict: Verdict) -> None:
    """Raise AssertionError where lazyfs fails at what the peers manage, and where the table is wrong about the peers."""
    assert verdict.peers
    if "LAZYFS_CONTAINERD" not in os.environ and row.refused_by != "?":
        refused_by = {"": set(), "both": {"skopeo", "containerd"}}.get(row.refused_by, {row.refused_by})
        assert {name for name, outcome in verdict.peers.items() if not outcome.ok} == refused_by, verdict.peers
    if row.required or all(outcome.ok for outcome in verdict.peers.values()):
        judge_ours(verdict)


def judge_ours(verdict: Verdict) -> None:
    """Raise AssertionError where lazyfs fails."""
    failed = {name: outcome.said for name, outcome in verdict.ours.items() if not outcome.ok}
    assert not failed, "\n".join(f"{name}: {said}" for name, said in failed.items())


@pytest.mark.parametrize("name", ["ranges ignored", "ranges answered by 403"])
def test_registry_without_ranges(name: str, laboratory: Laboratory) -> None:
    """One warning says that the layer is not lazy and why, and proposes no conversion; --lazy-only refuses."""
    row = next(row for row in PULLS if row.name == name)
    mounted = laboratory.mounts(row)
    assert mounted.ok
    assert mounted.said.count("is not lazy (it cannot be fetched in ranges: ") == 1 and "lazyfs convert" not in mounted.said
    refused = laboratory.mounts(row, "--lazy-only")
    assert refused.said.startswith("exit 3:") and "cannot be mounted lazily" in refused.said
