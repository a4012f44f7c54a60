"""After a plain `pip install`, without the extras: which one to install is said, in one line, and nothing is left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.commands import Done, Lazyfs, run
from tests.small_image import SmallImage

PLAIN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pyfuse3", "setproctitle", "grpc", "google", "prometheus_client"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
"""sitecustomize.py of an environment that has no extra, and of every process that is started in it."""


@pytest.fixture
def plain(lazyfs: Lazyfs, tmp_path: Path) -> Lazyfs:
    """The command line without the extras."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "sitecustomize.py").write_text(PLAIN)
    lazyfs.environment |= {"PYTHONPATH": f"{tmp_path}/plain"}
    return lazyfs


def described(done: Done) -> str:
    """The last line on standard error, which is all there is but for notes."""
    return done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("mode", ["auto", "portable", pytest.param("native", marks=[pytest.mark.root, pytest.mark.fuse])])
def test_a_mount(mode: str, plain: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """In every mode, before anything is fetched or started; no log has anything to say."""
    (tmp_path / "root").mkdir()
    done = plain.run("mount", small.converted, tmp_path / "root", "--store", plain.store, "--mode", mode, code=5)
    assert (
        described(done) == "lazyfs: lazyfs mount needs pyfuse3, which is not installed. pip install 'lazyfs[mount]' installs it"
    )
    assert not list(plain.store.glob("logs/*"))


@pytest.mark.root
@pytest.mark.containerd
def test_a_container(plain: Lazyfs, small: SmallImage) -> None:
    """`lazyfs run` has no program whose exit code this could be."""
    done = plain.run("run", "--store", plain.store, small.converted, "true", code=125)
    assert described(done) == "lazyfs: lazyfsd needs pyfuse3, which is not installed. pip install 'lazyfs[mount]' installs it"


@pytest.mark.parametrize("options", [[], ["--no-keeper"], ["--snapshotter", "socket"]])
def test_the_daemon(options: list[str], plain: Lazyfs, tmp_path: Path) -> None:
    """Asked for by a person, and as systemd starts it."""
    done = run(sys.executable, "-m", "lazyfs.daemon", "--store", plain.store, *options, code=5, env=plain.environment)
    assert done.stderr == b"lazyfsd: lazyfsd needs pyfuse3, which is not installed. pip install 'lazyfs[mount]' installs it\n"


def test_a_daemon_for_containerd(plain: Lazyfs, tmp_path: Path) -> None:
    """With one extra, and not the other."""
    (tmp_path / "plain" / "sitecustomize.py").write_text(PLAIN.replace('"pyfuse3", ', ""))
    command = [sys.executable, "-m", "lazyfs.daemon", "--store", str(plain.store), "--snapshotter", str(tmp_path / "socket")]
    done = run(*command, code=5, env=plain.environment)
    assert (
        described(done)
        == "lazyfsd: serving containerd needs grpc, which is not installed. pip install 'lazyfs[containerd]' installs it"
    )
    assert not (tmp_path / "socket").exists()


def test_a_pull(plain: Lazyfs) -> None:
    """Which needs no FUSE."""
    assert "lazyfs[containerd]" in described(plain.run("pull", "localhost:1/image", "--store", plain.store, code=2))


def test_what_needs_no_extra(plain: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """Converting and looking into images works; a password on the command line is not a reason to fail."""
    creds = ("--creds", "me:secret")
    plain.run("convert", f"oci:{small.original}:v1", f"oci:{tmp_path}/out:v1", *creds)
    assert plain.run("cat", small.converted, "/bin/tool", "--store", plain.store, *creds).stdout == small.files["bin/tool"]
    plain.run("verify", small.converted)
    assert os.listdir(plain.store)
