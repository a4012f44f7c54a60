"""`lazyfs pull` into containerd: lazy, mixed and ordinary images that run, survive and go; what was cut off is gone on with."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bad.oci import INDEX, Oci, named, sha256, tar_of
from tests.commands import Lazyfs
from tests.containerd import PYTHON_HELLO, Containerd
from tests.cri.client import Cri
from tests.docker_registry import Registry
from tests.lazyfsd import moments
from tests.lying_registry import LyingRegistry
from tests.mixed_image import mix
from tests.plugin import NAME, Plugin, plugin_at
from tests.small_image import SmallImage
from tests.unit.registry.scripted import Answer, Reply, Request, reply

pytestmark = [pytest.mark.fuse, pytest.mark.containerd, pytest.mark.images]

AWAY = "away"
"""A snapshotter that containerd knows, and that does not run."""
KUBERNETES = "k8s.io"
ENVIRONMENT = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""With such a one a pull is the command's own."""
PULLS = "INFO lazyfs.daemon.pulling: pulling "
CREDS = "private"
"""In the name of a test that pulls with credentials, which is the command's own as well."""
PIECE = 1 << 20
"""Bytes that the client brings at a time: what is killed within the first one leaves nothing."""


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    """One for the module. It fetches nothing by itself, so that requests can be counted."""
    with plugin_at(background=False) as running:
        yield running


@pytest.fixture(scope="module")
def module_containerd(plugin: Plugin) -> Iterator[Containerd]:
    plugins = {NAME: plugin.socket, AWAY: plugin.folder / "nobody"}
    with Containerd(plugin.folder / "c", plugins, pause="no/pod:runs") as running:
        yield running


@pytest.fixture
def containerd(module_containerd: Containerd) -> Iterator[Containerd]:
    """Tests leave images; when these are removed nothing is left of them, in either name space."""
    yield module_containerd
    for namespace in ("default", KUBERNETES):
        for name in listed(module_containerd, "images", "ls", "-q", namespace=namespace):
            module_containerd.ctr("--namespace", namespace, "images", "rm", "--sync", name)
        assert left(module_containerd, namespace) == []


def left(containerd: Containerd, namespace: str = "default") -> list[str]:
    """All that containerd has but images."""
    what = (("content", "ls", "-q"), ("content", "active"), ("leases", "ls", "-q"), ("snapshots", "--snapshotter", NAME, "ls"))
    return [line for command in what for line in listed(containerd, *command, namespace=namespace)]


def listed(containerd: Containerd, *command: str, namespace: str = "default") -> list[str]:
    """What one of ctr's listings has, without its title."""
    lines = containerd.ctr("--namespace", namespace, *command).stdout.decode().splitlines()
    return [line for line in lines if not line.startswith(("KEY", "REF"))]


@pytest.fixture(params=["here", "by lazyfsd"])
def where(request: pytest.FixtureRequest, containerd: Containerd, lazyfs: Lazyfs, plugin: Plugin) -> tuple[str, ...]:
    """Options of a pull: which containerd, and who carries it out, the command itself or lazyfsd, which is then not able to itself."""
    options = ("--address", str(containerd.folder / "socket"))
    if request.param == "here":
        return (*options, "--store", str(lazyfs.store))
    for name in ENVIRONMENT:
        lazyfs.environment.pop(name, None)
    return (*options, "--store", str(plugin.store))


@pytest.fixture
def pull(where: tuple[str, ...], lazyfs: Lazyfs) -> Callable[..., Any]:
    """`pull(reference, *options)`: what it prints, and `told`, its lines on stderr."""

    def pull(reference: str, *options: str) -> Any:
        done = lazyfs.run("pull", reference, *where, "--json", *options)
        return {**json.loads(done.stdout), "told": done.stderr.decode().splitlines()}

    return pull


@pytest.fixture
def refused(where: tuple[str, ...], lazyfs: Lazyfs) -> Callable[..., str]:
    """`refused(code, reference, *options)`: what a pull says that ends with that code."""

    def refused(code: int, reference: str, *options: str | Path) -> str:
        done = lazyfs.run("pull", reference, *where, *options, code=code)
        return done.stderr.decode()

    return refused


@pytest.fixture(autouse=True)
def check_who_pulled(request: pytest.FixtureRequest, plugin: Plugin) -> Iterator[None]:
    """lazyfsd logs what it pulls."""
    before = plugin.logged().count(PULLS)
    yield
    param = request.node.callspec.params.get("where") if hasattr(request.node, "callspec") else None
    if param is not None and CREDS not in request.node.name:
        assert (plugin.logged().count(PULLS) > before) == (param == "by lazyfsd")


def check_contents(containerd: Containerd, pulled: Any, files: dict[str, bytes], folder: Path) -> None:
    """Every file has its bytes, and what a layer has whited out is gone."""
    with containerd.shown(NAME, folder, pulled["layers"][-1]["chain_id"]) as root:
        for name, data in files.items():
            assert (root / name).read_bytes() == data, name
        assert not (root / "gone").exists()


def is_lazy(pulled: Any) -> list[bool]:
    return [layer["lazy"] for layer in pulled["layers"]]


def test_a_lazy_image_comes_with_its_metadata_alone_and_stays(
    pull: Callable[..., Any],
    containerd: Containerd,
    shared_registry: Registry,
    converted: Callable[[str], str],
    refused: Callable[..., str],
) -> None:
    """One manifest, one config, one or two ranges a layer. Neither pruned references, nor a collection, nor a restart takes it."""
    reference = converted("python")
    before = len(shared_registry.requests())
    pulled = pull(reference)
    name = reference.removeprefix("docker://")
    asked = shared_registry.requests()[before:]
    assert len([one for one in asked if "/manifests/" in one.path]) == 1
    assert len([one for one in asked if one.is_blob and one.status == 200]) == 1, "lazyfsd is told what the manifest says"
    assert len([one for one in asked if one.is_blob and one.status == 206]) <= 6
    assert pulled["image"] == name and is_lazy(pulled) == [True] * 3 and pulled["told"] == []
    assert containerd.output(name, *PYTHON_HELLO, snapshotter=NAME) == "hello\n"

    containerd.ctr("content", "prune", "references")
    containerd.ctr("images", "tag", name, "other/name:v1")
    containerd.ctr("images", "rm", "--sync", "other/name:v1")
    restart(containerd)
    assert containerd.output(name, *PYTHON_HELLO, snapshotter=NAME) == "hello\n"
    before = len(shared_registry.requests())
    assert is_lazy(pull(reference)) == [True] * 3
    asked = shared_registry.requests()[before:]
    assert [one.path.rpartition("/")[2] for one in asked] == ["v1"], "only the tag may have moved"


def restart(containerd: Containerd) -> None:
    """End it, and start another one that finds what it had."""
    assert containerd._process is not None
    containerd._process.terminate()
    containerd._process.wait(60)
    containerd.__enter__()


def test_complete_fetches_the_blobs(
    pull: Callable[..., Any], containerd: Containerd, converted: Callable[[str], str], tmp_path: Path
) -> None:
    """Of lazy layers, too: then containerd can export the image."""
    reference = converted("python")
    name = reference.removeprefix("docker://")
    pull(reference)
    assert b"incomplete" in containerd.ctr("images", "check", "--snapshotter", NAME).stdout
    containerd.ctr("images", "export", str(tmp_path / "image.tar"), name, code=1)
    pulled = pull(reference, "--complete")
    assert is_lazy(pulled) == [True] * 3
    containerd.ctr("images", "export", str(tmp_path / "image.tar"), name)
    assert (tmp_path / "image.tar").stat().st_size > sum(layer["size"] for layer in pulled["layers"])
    assert b"incomplete" not in containerd.ctr("images", "check", "--snapshotter", NAME).stdout


@pytest.mark.parametrize("which", ["lo", "ol"])
def test_what_cannot_be_lazy_is_unpacked(
    which: str,
    pull: Callable[..., Any],
    containerd: Containerd,
    shared_registry: Registry,
    small: SmallImage,
    tmp_path: Path,
) -> None:
    """Below a lazy layer or upon one; a line says which and why, and the files are right. A second pull moves none of it."""
    made = mix(f"oci:{small.original}:v1", small.converted, [letter == "l" for letter in which], tmp_path / "mixed")
    reference = shared_registry.push(made, f"pull/{which}:v1")
    pulled = pull(reference)
    assert is_lazy(pulled) == [letter == "l" for letter in which]
    (ordinary,) = (layer for layer in pulled["layers"] if not layer["lazy"])
    assert pulled["told"] == [f"lazyfs: layer {ordinary['digest']} {ordinary['reason']}"]
    assert "was not converted" in ordinary["reason"]
    check_contents(containerd, pulled, small.files, tmp_path / "root")
    before = len(shared_registry.requests())
    assert pull(reference) == pulled
    assert not shared_registry.blob_requests(before)


def test_an_index_is_kept_whole(
    pull: Callable[..., Any], refused: Callable[..., str], containerd: Containerd, tmp_path: Path
) -> None:
    """The name means the index, as with ctr; one platform's manifest is chosen, and manifests that are not here do no harm."""
    oci = Oci(tmp_path / "image")
    tar = tar_of((named("file"), b"for this machine"))
    manifest = oci.image(oci.plain(tar)) | {"platform": {"os": "linux", "architecture": "amd64"}}
    other = {**manifest, "digest": sha256(b"not here"), "platform": {"os": "linux", "architecture": "arm64"}}
    index = oci.tag(oci.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, manifest]}, INDEX))
    with LyingRegistry(tmp_path / "image") as registry:
        reference = f"{registry.image}:v1"
        pulled = pull(reference, "--platform", "linux/amd64")
        assert (pulled["digest"], pulled["manifest"]) == (index["digest"], manifest["digest"])
        containerd.ctr("content", "prune", "references")
        check_contents(containerd, pulled, {"file": b"for this machine"}, tmp_path / "root")
        assert "nothing for linux/riscv64" in refused(4, reference, "--platform", "linux/riscv64")
        by_digest = pull(f"{registry.image}@{index['digest']}", "--platform", "linux/amd64")
        assert by_digest["image"] == f"{registry.image.removeprefix('docker://')}@{index['digest']}"


def stall(_: Request, right: Answer, *, after: int = PIECE * 3 // 2) -> Answer:
    """A lie: of a large blob come so many bytes, and then nothing more."""
    data = right.data if isinstance(right, Reply) else right
    return Reply(data[:after], "silence") if len(data) > PIECE * 3 // 2 else right


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_pull_that_was_cut_off_is_gone_on_with(
    how: signal.Signals,
    pull: Callable[..., Any],
    where: tuple[str, ...],
    containerd: Containerd,
    lazyfs: Lazyfs,
    small: SmallImage,
    tmp_path: Path,
) -> None:
    """Killed or interrupted in the middle of a blob: the next one asks for the rest of it, and what the dead one left goes."""
    with LyingRegistry(small.original) as registry:
        registry.lie = stall
        command = [sys.executable, "-m", "lazyfs", "pull", f"{registry.image}:v1", *where]
        with subprocess.Popen(command, env=lazyfs.environment, stderr=subprocess.PIPE) as client:
            for _ in moments():
                begun = [kind for _, kind in containerd.snapshots(NAME).values()]
                if begun == ["Active"] and b"1.049MB" in containerd.ctr("content", "active").stdout:
                    break
            client.send_signal(how)
            assert client.wait(60) == (130 if how == signal.SIGINT else -how)
        assert len(listed(containerd, "leases", "ls", "-q")) == 1
        if how == signal.SIGINT:
            assert containerd.snapshots(NAME) == {}
        registry.recover()
        before = len(registry.server.requests)
        pulled = pull(f"{registry.image}:v1")
        asked = [(each.target, each.headers["range"]) for each in registry.server.requests[before:] if "range" in each.headers]
        cut = {blob for blob, wanted in asked if wanted.startswith(f"bytes={PIECE}-")}
        assert cut
        assert not [blob for blob, wanted in asked if blob in cut and wanted.startswith("bytes=0-")]
        assert listed(containerd, "leases", "ls", "-q") == []
    check_contents(containerd, pulled, small.files, tmp_path / "root")
    assert {kind for _, kind in containerd.snapshots(NAME).values()} == {"Committed"}


@pytest.mark.parametrize("where", ["by lazyfsd"], indirect=True)
def test_a_client_that_goes_leaves_nothing_open(
    where: tuple[str, ...], plugin: Plugin, lazyfs: Lazyfs, small: SmallImage
) -> None:
    """Killed while lazyfsd pulls for it: no connection stays, to containerd or to the registry."""
    with LyingRegistry(small.original) as registry:
        # Nothing is kept, so that none of them comes to an end.
        registry.lie = partial(stall, after=PIECE // 2)
        before = plugin.descriptors()
        for number in range(1, 4):
            command = [sys.executable, "-m", "lazyfs", "pull", f"{registry.image}:v1", *where]
            asked = len(registry.ranges)
            with subprocess.Popen(command, env=lazyfs.environment, stderr=subprocess.PIPE) as client:
                for _ in moments():
                    if len(registry.ranges) > asked:
                        break
                assert client.poll() is None, number
                client.kill()
        for _ in moments():
            if not (opened := plugin.descriptors() - before):
                break
        assert not opened
        registry.recover()
        lazyfs.run("pull", f"{registry.image}:v1", *where)


def test_two_pulls_at_once_are_one(where: tuple[str, ...], lazyfs: Lazyfs, small: SmallImage) -> None:
    """Neither fails, and each blob moves once."""
    with LyingRegistry(small.original) as registry:
        command = [sys.executable, "-m", "lazyfs", "pull", f"{registry.image}:v1", *where]
        both = [subprocess.Popen(command, env=lazyfs.environment, stderr=subprocess.DEVNULL) for _ in range(2)]
        assert [client.wait(60) for client in both] == [0, 0]
        assert len(registry.ranges) == 2


def test_a_private_registrys_layers_fall_back(
    pull: Callable[..., Any], refused: Callable[..., str], containerd: Containerd, small: SmallImage, tmp_path: Path
) -> None:
    """lazyfsd has not what --creds says: its layers are unpacked by containerd, and both are told. The files are right."""
    right = "Basic " + base64.b64encode(b"user:secret").decode()

    def private(request: Request, found: Answer) -> Answer:
        return found if request.headers.get("authorization") == right else reply(401, www_authenticate='Basic realm="tests"')

    with LyingRegistry(small.layout) as registry:
        registry.lie = private
        assert "wants credentials" in refused(4, f"{registry.image}:v1")
        pulled = pull(f"{registry.image}:v1", "--creds", "user:secret")
        assert is_lazy(pulled) == [False, False]
        assert all("credentials" in layer["reason"] for layer in pulled["layers"])
        assert "--creds was for this pull" in pulled["told"][-1]
        check_contents(containerd, pulled, small.files, tmp_path / "root")


def test_a_lie_is_refused_and_leaves_nothing(
    refused: Callable[..., str], containerd: Containerd, small: SmallImage, tmp_path: Path
) -> None:
    """A blob of other bytes, and one that unpacks to something else than the config says."""

    def lie(request: Request, right: Answer) -> Answer:
        data = right.data if isinstance(right, Reply) else right
        return data[:-1] + bytes([data[-1] ^ 1]) if "range" in request.headers else right

    with LyingRegistry(small.original) as registry:
        registry.lie = lie
        assert "has another digest" in refused(3, f"{registry.image}:v1")
    oci = Oci(tmp_path / "image")
    oci.image(oci.plain(tar_of(named("file")), diff_id=sha256(b"something else")))
    with LyingRegistry(tmp_path / "image") as registry:
        assert "the config's diff ID is" in refused(3, f"{registry.image}:v1")
    assert left(containerd) == []


def test_cri_finds_the_image(
    pull: Callable[..., Any], containerd: Containerd, plugin: Plugin, converted: Callable[[str], str]
) -> None:
    """In its own name space, by ID, name and digest; what it removes is gone."""
    reference = converted("python")
    pulled = pull(reference, "--namespace", KUBERNETES)
    name = reference.removeprefix("docker://")
    with Cri(containerd.folder / "socket", plugin.folder / "logs") as cri:
        for _ in moments():
            image = cri.image(name)
            if image is not None and image.digests:
                break
        assert image is not None
        assert image.tags == [name]
        assert image.digests == [f"{name.rpartition(':')[0]}@{pulled['digest']}"]
        assert cri.image(image.id) == image
        cri.remove_image(image.id)
        assert cri.list_images() == []


def test_what_is_missing_is_said_in_words(refused: Callable[..., str], registry: Registry, tmp_path: Path) -> None:
    """No containerd, no such snapshotter, one that does not run, no such image."""
    reference = f"docker://{registry.address}/none:v1"
    assert "there is no containerd at" in refused(5, reference, "--address", tmp_path / "none")
    said = refused(5, reference, "--snapshotter", "nobodys")
    assert "has no snapshotter 'nobodys'; it has" in said and "[proxy_plugins.nobodys]" in said
    assert "404" in refused(4, reference)
    assert "oci:" in refused(2, "oci:/somewhere:v1")


def test_a_snapshotter_that_does_not_run_is_said_in_words(refused: Callable[..., str], small: SmallImage) -> None:
    """After a while: it may be about to start."""
    with LyingRegistry(small.layout) as registry:
        assert "the snapshotter away fails" in refused(5, f"{registry.image}:v1", "--snapshotter", AWAY)
