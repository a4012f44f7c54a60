"""What workers share: things made once, files in an order, and failures listed by tier."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.workers import Workers, once, own_folder, pytest_xdist_auto_num_workers

ROOT = Path(__file__).parents[3]


def test_made_by_one_for_all(tmp_path: Path) -> None:
    """Callers that come together wait for the one that makes it."""
    made: list[int] = []
    gate = threading.Barrier(4)

    def ask(number: int) -> None:
        gate.wait()
        once(tmp_path, "image", lambda: made.append(number))
        assert len(made) == 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_what_failed_is_made_by_the_next(tmp_path: Path) -> None:
    """A worker whose attempt failed leaves nothing that others would take for done."""
    with pytest.raises(ZeroDivisionError):
        once(tmp_path, "image", lambda: 1 // 0)
    made: list[bool] = []
    once(tmp_path, "image", lambda: made.append(True))
    assert made


def test_a_worker_removes_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves those of others."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")
    with own_folder(tmp_path) as folder:
        (tmp_path / "gw8").mkdir()
        (folder / "file").touch()
        assert folder == tmp_path / "gw7"
    assert [path.name for path in tmp_path.iterdir()] == ["gw8"]


def test_a_worker_more_than_cores() -> None:
    """Tests of mounts and containers wait more than they compute."""
    assert pytest_xdist_auto_num_workers() == len(os.sched_getaffinity(0)) + 1


def in_order(folder: Path, names: list[str], **more: object) -> list[str]:
    """Test files as they are run, in an order of two tiers."""
    tiers = ["tests/unit", "tests/integration"]
    config = SimpleNamespace(rootpath=folder, getini=lambda name: tiers, **more)
    items = [SimpleNamespace(nodeid=f"{name}::test") for name in names]
    Workers(cast("pytest.Config", config)).pytest_collection_modifyitems(cast("list[pytest.Item]", items))
    return [item.nodeid.partition("::")[0] for item in items]


def test_workers_begin_with_the_long_files(tmp_path: Path) -> None:
    """The short ones fill what is left at the end; within a tier the order stays."""
    names = ["tests/unit/b.py", "tests/unit/a.py", "tests/integration/d.py", "tests/integration/c.py"]
    given = {"workerinput": {"lazyfs_run_folder": str(tmp_path)}}
    assert in_order(tmp_path, names, **given) == [*names[2:], *names[:2]]


def test_one_process_begins_with_the_lowest_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As collected: the first failure is the lowest thing that broke."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(tmp_path))
    names = ["tests/unit/b.py", "tests/integration/d.py"]
    assert in_order(tmp_path, names) == names


def test_failures_are_listed_from_the_lowest_tier_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever order several workers reported them."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(tmp_path))
    config = SimpleNamespace(rootpath=tmp_path, getini=lambda name: ["tests/unit", "tests/integration"])
    failed = [
        SimpleNamespace(nodeid=f"tests/{name}") for name in ("integration/a.py::test", "unit/b.py::test", "unit/a.py::test")
    ]
    stats = {"failed": failed}
    config.pluginmanager = SimpleNamespace(get_plugin=lambda name: SimpleNamespace(stats=stats))
    Workers(cast("pytest.Config", config)).pytest_sessionfinish(cast("pytest.Session", SimpleNamespace(config=config)))
    assert [report.nodeid for report in failed] == [
        f"tests/{name}::test" for name in ("unit/a.py", "unit/b.py", "integration/a.py")
    ]


ALONE = """
import pathlib, time, pytest
folder = pathlib.Path(__file__).parent

@pytest.mark.parametrize("number", range(6))
def test_other(number):
    (folder / f"running-{number}").touch()
    assert not (folder / "alone").exists()
    time.sleep(0.05)
    (folder / f"running-{number}").unlink()

@pytest.mark.alone
def test_alone():
    (folder / "alone").touch()
    time.sleep(0.1)
    assert not list(folder.glob("running-*"))
    (folder / "alone").unlink()
"""


def test_alone_means_alone(tmp_path: Path) -> None:
    """No other worker runs a test meanwhile: workers under a real pytest."""
    (tmp_path / "test_it.py").write_text(ALONE)
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_configure\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone: x\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "load", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "7 passed" in done.stdout, done.stdout + done.stderr
