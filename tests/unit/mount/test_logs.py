"""The log of a mount must never be what ends it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.mount import logs


@pytest.fixture(autouse=True)
def root_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root logger, put back as it was; the process's umask as well."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(logs.os, "umask", lambda mask: 0o022)
    yield root
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers, root.level = handlers, level


def test_the_first_warning_makes_the_file(tmp_path: Path, expect_log: object) -> None:
    """The folder and the file come with the first line, not before."""
    expect_log("something happened")  # type: ignore[operator]
    logs.log_to_file(tmp_path / "store", Path("/mnt/one"))
    assert not (tmp_path / "store").exists()
    logging.getLogger("test").warning("something happened")
    assert "something happened" in logs.log_file(tmp_path / "store", Path("/mnt/one")).read_text()


def test_a_log_that_cannot_be_opened_costs_only_its_lines(
    tmp_path: Path, expect_log: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk turned read-only: the guard of the mount complains, and goes on."""
    expect_log("something happened")  # type: ignore[operator]
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handleError would print a traceback
    (tmp_path / "store").write_text("not a directory")
    logs.log_to_file(tmp_path / "store", Path("/mnt/one"))
    logging.getLogger("test").warning("something happened")
