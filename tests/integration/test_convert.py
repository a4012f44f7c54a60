"""`lazyfs convert` as a user runs it: between real registries and layouts, against the programs that other people unpack with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Lazyfs, run, umoci_unpack
from tests.docker_registry import Registry
from tests.images.layout import Layout
from tests.small_image import build
from tests.tars import END, file, header, info, pax, written
from tests.tree import compare, walk

OWN_NAMES = (b"stargz.index.json", b".no.prefetch.landmark")


def add_image(path: Path, *tars: bytes, tag: str = "v1") -> str:
    """An image of these tars, in a layout."""
    layout = Layout(path)

    def writer(tar: bytes) -> Callable[[Any], None]:
        return lambda target: target.write(tar)

    layout.add_image(tag, [(layout.add_layer(writer(tar)), "a layer") for tar in tars], {"Cmd": ["sh"]})
    return f"oci:{path}:{tag}"


def digest_of(layout: Path) -> str:
    """The digest of the only image of a layout."""
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    return str(entry["digest"])


@pytest.mark.registry
def test_every_direction_gives_the_same_image(lazyfs: Lazyfs, registry: Registry, tmp_path: Path) -> None:
    """Layout to registry to layout and all others: one digest, which skopeo accepts."""
    layout = add_image(tmp_path / "source", written((info("file"), b"x" * 100_000)))
    pushed = registry.push(layout, "source:v1")
    for source in (layout, pushed):
        for number, destination in enumerate(
            [f"oci:{tmp_path}/{len(source)}:v1", f"docker://{registry.address}/{len(source)}:v1"]
        ):
            report = lazyfs.json("convert", source, destination)
            raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", destination).stdout
            assert json.loads(raw)["annotations"]["dev.lazyfs.source.digest"] == report["source_digest"]
            (tmp_path / f"{len(source)}-{number}.json").write_bytes(raw)
    assert len({path.read_bytes() for path in tmp_path.glob("*.json")}) == 1
    back = f"oci:{tmp_path}/back:v1"
    run(
        "skopeo",
        "copy",
        "--quiet",
        "--insecure-policy",
        "--src-tls-verify=false",
        f"docker://{registry.address}/{len(layout)}:v1",
        back,
    )
    assert digest_of(tmp_path / "back") == report["digest"]


@pytest.mark.registry
def test_what_a_registry_has_is_not_sent_again(lazyfs: Lazyfs, registry: Registry, tmp_path: Path) -> None:
    """Neither to the same repository, nor to another one of the same registry when the layers stay."""
    layout = add_image(tmp_path / "source", written((info("file"), b"x" * 100_000)), END)
    lazyfs.run("convert", layout, f"docker://{registry.address}/one:v1")
    sent = len(registry.requests())
    lazyfs.run("convert", layout, f"docker://{registry.address}/one:v2")
    requests = registry.requests()[sent:]
    assert [request.path for request in requests if request.method not in {"GET", "HEAD"}] == ["/v2/one/manifests/v2"]
    sent += len(requests)
    report = lazyfs.json("convert", f"docker://{registry.address}/one:v1", f"docker://{registry.address}/two:v1")
    assert [layer["kept"] for layer in report["images"][0]["layers"]] == [True, True]
    mounts = [request for request in registry.requests()[sent:] if "?mount=" in request.path]
    assert [request.status for request in mounts] == [201, 201]


@pytest.mark.registry
def test_a_tag_is_written_last(lazyfs: Lazyfs, registry: Registry, tmp_path: Path) -> None:
    """A manifest is the last thing that the registry gets."""
    layout = add_image(tmp_path / "source", written((info("file"), b"x" * 100_000)), written((info("other"), b"y")))
    lazyfs.run("convert", layout, f"docker://{registry.address}/one:v1")
    writes = [request for request in registry.requests() if request.method in {"POST", "PUT", "PATCH"}]
    assert (writes[-1].method, writes[-1].path, writes[-1].status) == ("PUT", "/v2/one/manifests/v1", 201)
    assert sum("/manifests/" in request.path for request in writes) == 1


def hard_layers() -> list[bytes]:
    """Two layers with what is hard about layers."""
    lower = (
        written(
            info("./", tarfile.DIRTYPE, mode=0o755),
            info("implied", tarfile.DIRTYPE, mode=0o700, uid=33, gid=34, mtime=1_000_000_000),
            info("implied/below", tarfile.DIRTYPE, mode=0o711, uid=35),
            info("usr", tarfile.DIRTYPE, mode=0o755),
            info("usr/lib", tarfile.DIRTYPE, mode=0o755),
            info("lib", tarfile.SYMTYPE, linkname="usr/lib"),
            info("opaque", tarfile.DIRTYPE, mode=0o755),
            (info("opaque/old"), b"hidden"),
            (info("gone"), b"hidden"),
            (info("again"), b"old"),
            info("becomes-directory", tarfile.SYMTYPE, linkname="usr"),
        )[: -len(END)]
        + END
    )
    upper = b"".join(
        [
            file(b"implied/below/file", b"data"),
            file(b"lib/through-a-link", b"found"),
            header(b"opaque/", b"5", mode=b"0000755\0"),
            file(b"opaque/new", b"new"),
            header(b"opaque/.wh..wh..opq"),
            file(b"again", b"new"),
            header(b".wh.again"),
            header(b".wh.gone"),
            file(b"twice", b"first"),
            header(b"link", b"1", 0, b"twice"),
            file(b"twice", b"second"),
            header(b"becomes-directory/", b"5", mode=b"0000755\0"),
            header(b"becomes-directory/.wh..wh..opq"),
            file(b"becomes-directory/file", b"data"),
            pax((b"path", b"n" * 255), (b"mtime", b"-1.25"), (b"SCHILY.xattr.user.k", b"a\0b")) + file(b"short", b"long name"),
            pax((b"path", b"deep/" + b"d" * 250 + b"/" + b"e" * 250 + b"/f")) + file(b"short", b"long path"),
            pax((b"path", b"latin-\xe9")) + file(b"short", b"one"),
            pax((b"path", b"latin-\xea")) + file(b"short", b"two"),
            pax((b"uid", b"4294967294"), (b"mtime", b"8589934592.123456789")) + header(b"owned", mode=b"0006755\0"),
            pax(
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", b"sparse"),
                (b"GNU.sparse.realsize", b"99"),
            )
            + file(b"GNUSparseFile.0/sparse", b"1\n50\n3\n".ljust(512, b"\0") + b"mid"),
            header(b"fifo", b"6"),
            header(b"null", b"3", major=b"0000001\0", minor=b"0000003\0"),
            END,
        ]
    )
    return [lower, upper]


@pytest.mark.umoci
@pytest.mark.parametrize("options", [[], ["--chunk-size", "4K", "--level", "9"]])
def test_umoci_unpacks_the_same_tree(lazyfs: Lazyfs, tmp_path: Path, options: list[str]) -> None:
    """Of what is hard about layers: implied directories, links on the way, whiteouts in any order, sparse files, any bytes."""
    layout = add_image(tmp_path / "source", *hard_layers())
    lazyfs.run("convert", layout, f"oci:{tmp_path}/out:v1", *options)
    before = walk(umoci_unpack(layout, tmp_path / "before"))
    after = walk(umoci_unpack(f"oci:{tmp_path}/out:v1", tmp_path / "after"))
    for tree in (before, after):
        # umoci gives the time of unpacking to what no layer names: these, and the parents that it makes.
        for path in (b"deep", b"deep/" + b"d" * 250, b"deep/" + b"d" * 250 + b"/" + b"e" * 250):
            assert path in tree
    differences = compare(before, after, ignore=OWN_NAMES)
    assert not [line for line in differences if "deep" not in str(line)]
    assert (tmp_path / "after" / "rootfs" / "link").read_bytes() == b"first"
    assert (tmp_path / "after" / "rootfs" / "sparse").read_bytes() == bytes(50) + b"mid" + bytes(46)
    assert (tmp_path / "after" / "rootfs" / "again").read_bytes() == b"new"


@pytest.mark.umoci
def test_prioritised_files_unpack_to_the_same_tree(lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Another order, and a landmark; what is not there is counted and named."""
    layout = add_image(tmp_path / "source", *hard_layers())
    (tmp_path / "list").write_text("/opaque/new\nlib/through-a-link\nagain\nmissing\n")
    done = lazyfs.run("convert", layout, f"oci:{tmp_path}/out:v1", "--prioritize", tmp_path / "list")
    assert b"1 prioritised paths are in no layer" in done.stdout
    before = walk(umoci_unpack(layout, tmp_path / "before"))
    after = walk(umoci_unpack(f"oci:{tmp_path}/out:v1", tmp_path / "after"))
    assert b".prefetch.landmark" in after
    differences = compare(before, after, ignore=(*OWN_NAMES, b".prefetch.landmark"))
    assert not [line for line in differences if "deep" not in str(line)]


def test_python_and_gnu_tar_list_our_blobs(lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Both read every entry, with the TOC at the end."""
    layout = add_image(tmp_path / "source", *hard_layers())
    lazyfs.run("convert", layout, f"oci:{tmp_path}/out:v1")
    out = Layout(tmp_path / "out")
    manifest = json.loads(out.blob(digest_of(tmp_path / "out")).read_bytes())
    for layer in manifest["layers"]:
        blob = out.blob(layer["digest"])
        with tarfile.open(blob, encoding="utf-8", errors="surrogateescape") as tar:
            names = [os.fsencode(member.name) for member in tar]
        listed = run("tar", "tzf", blob, "--quoting-style=literal", env={"LC_ALL": "C", "PATH": os.environ["PATH"]}).stdout
        assert [line.rstrip(b"/") for line in listed.splitlines()] == [name if name != b"" else b"." for name in names]
        assert names[-1] == b"stargz.index.json"


@pytest.mark.parametrize("size", [384 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_memory_does_not_depend_on_the_size_of_a_file(size: int, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """A large file, in well under 200 MB."""
    tar = tmp_path / "big.tar"
    with tar.open("wb") as target:
        target.write(header(b"big", size_field=b"%011o\0" % size))
        target.truncate(512 + size + 1024)
    layout = Layout(tmp_path / "source")
    with tar.open("rb") as source:

        def write(target: Any) -> None:
            while data := source.read(1 << 20):
                target.write(data)

        layout.add_image("v1", [(layout.add_layer(write), "a layer")], {})
    # Not getrusage: that remembers what this process weighed when it forked.
    measure = "import re, runpy, sys; sys.argv[0] = 'lazyfs'\ntry: runpy.run_module('lazyfs', run_name='__main__')\n"
    measure += "except SystemExit: print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); raise\n"
    command = [sys.executable, "-c", measure, "convert", f"oci:{tmp_path}/source:v1", f"oci:{tmp_path}/out:v1", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, env=lazyfs.environment, timeout=300)
    report, peak = done.stdout.rsplit(b"}\n", 1)
    assert json.loads(report + b"}")["images"][0]["layers"][0]["chunks"] == size // (4 << 20) + 1
    assert int(peak) < 200 << 10, "KiB"


def test_a_killed_conversion_leaves_no_files(lazyfs: Lazyfs, tmp_path: Path) -> None:
    """SIGKILL in the middle: TMPDIR is empty, and the destination names nothing."""
    layout = build_large(tmp_path / "source")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "lazyfs", "convert", layout, f"oci:{tmp_path}/out:v1"]
    with subprocess.Popen(command, env={**lazyfs.environment, "TMPDIR": str(scratch)}, stdout=subprocess.DEVNULL) as process:
        fds = Path(f"/proc/{process.pid}/fd")
        while process.poll() is None and not any(is_scratch(fd, scratch) for fd in fds.iterdir()):
            pass
        process.kill()
    assert process.returncode != 0, "it was killed while it had temporary files"
    assert list(scratch.iterdir()) == []
    index = tmp_path / "out" / "index.json"
    assert not index.exists() or not json.loads(index.read_text())["manifests"]


def build_large(path: Path) -> str:
    """An image that takes a while."""
    return add_image(path, written((info("random"), os.urandom(40 << 20))))


def is_scratch(fd: Path, folder: Path) -> bool:
    """Whether an open file lies, without a name, in `folder`. (tempfile first tries the folder with a file that has one.)"""
    try:
        return str(fd.readlink()).startswith(str(folder)) and str(fd.readlink()).endswith(" (deleted)")
    except OSError:
        return False


def test_a_small_image_is_whole(tmp_path: Path, lazyfs: Lazyfs) -> None:
    """Built, converted, and verified by the reading half: TOC, chunks, diff IDs, and that tar and TOC tell the same tree."""
    image = build(tmp_path / "image")
    lazyfs.run("verify", image.converted)
