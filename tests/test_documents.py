"""The documents: short where they promise to be, and no link leads nowhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(path for folder in ("lazyfs", "converter", "bench", "systemd") for path in (ROOT / folder).rglob("*.md")),
    )
)
LOGGED = {f"_log.{level}" for level in ("warning", "error", "exception", "critical")}
MAX_LINES, MAX_WORDS = 100, 900
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def test_readme_is_short() -> None:
    """A newcomer reads it to its end."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.split()) <= MAX_WORDS


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    """Each link to a file of this repository names one that is there."""
    text = FENCE.sub("", (ROOT / document).read_text())
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (ROOT / document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_named_tests_exist(document: Path) -> None:
    """A document that says which test runs its statement names one that is there."""
    text = (ROOT / document).read_text()
    names = set(re.findall(r"\btest_\w+\.py", text))
    assert names <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def test_figures_come_from_clean_trees() -> None:
    """No document quotes a record of a tree with uncommitted changes."""
    quoted = {
        (ROOT / document.parent / target).resolve()
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)]+\.jsonl)\)", (ROOT / document).read_text())
    }
    assert quoted
    dirty = [path.name for path in quoted if re.search(rb'"commit":"[0-9a-f]+\+"', path.read_bytes().splitlines()[0])]
    assert not dirty


def log_lines() -> Iterator[str]:
    """Every warning and error that lazyfs or converter may log, `…` for what is filled in; those without words of their own left out."""
    for path in (*(ROOT / "lazyfs").rglob("*.py"), *(ROOT / "converter").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LOGGED and isinstance(node.args[0], ast.Constant):
                text = re.sub(r"%[.\d]*[sdrf]", "…", str(node.args[0].value))
                if text != "…":
                    yield text


def test_every_warning_is_explained() -> None:
    """TROUBLESHOOTING has each log line, with what it means and what to do."""
    text = (ROOT / "lazyfs" / "docs" / "TROUBLESHOOTING.md").read_text()
    lines = set(log_lines())
    assert len(lines) > 50
    assert not [line for line in sorted(lines) if f"`{line}`" not in text]


def test_every_explained_warning_exists() -> None:
    """And no line that lazyfs does not log."""
    text = (ROOT / "lazyfs" / "docs" / "TROUBLESHOOTING.md").read_text()
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert {line for cell in cells for line in re.findall(r"`([^`]+)`", cell)} <= set(log_lines())


def test_named_files_exist() -> None:
    """The code's own document names files that are there."""
    text = (ROOT / "lazyfs" / "README.md").read_text()
    names = set(re.findall(r"(?<![/\w])([a-z_/]+/[a-z_]+\.py)\b", text))
    assert not [name for name in sorted(names) if not ((ROOT / "lazyfs" / name).exists() or (ROOT / name).exists())]


def denied() -> Iterator[tuple[str, str]]:
    """(where, text) of every text that a test asserts to be in a log seldom, or not at all."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], (ast.NotIn, ast.Lt)):
                continue
            left = node.left
            if isinstance(left, ast.Call) and isinstance(left.func, ast.Attribute) and left.func.attr == "count":
                place, left = left.func.value, left.args[0]
            else:
                place = node.comparators[0]
            if (
                isinstance(left, ast.Constant)
                and isinstance(left.value, str)
                and ast.unparse(place).endswith(("log()", "logged()"))
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", left.value


def test_what_tests_deny_can_be_logged() -> None:
    """A test that a line is not in a log can fail only while lazyfs has such a line; libfuse's own are `fuse_reply…`."""
    said = []
    for path in (ROOT / "lazyfs").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
        documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        said += [str(node.value) for node in nodes if isinstance(node, ast.Constant) and id(node) not in documentation]
    found = list(denied())
    assert len(found) > 5
    assert not [where for where, text in found if text != "fuse_reply" and not any(text in line for line in said)]
