"""The rooms of lazyfs, held: who may import whom is read from the table in lazyfs/README.md, and checked in every source file.

Imports inside functions and under TYPE_CHECKING count as well: a room that needs another's type knows that room.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {"pyproject.toml", "lazyfs", "converter", "bench", "tests", "systemd", "README.md", "LICENSE", "CHANGELOG.md", ".ci"}
MAX_LINES = 400
GENERATED = ("_pb2.py", "_pb2_grpc.py")
"""The suffixes of files made by .ci/generate, which are not read: the .proto is."""
DISPATCH = "cli"
"""The one room of lazyfs that may import converter, in one line."""


def tracked() -> list[str]:
    """Every path that git tracks, or would after `git add`."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    return sorted({name.decode() for name in listing.split(b"\0") if name and (ROOT / name.decode()).exists()})


@cache
def table() -> dict[str, frozenset[str]]:
    """Room -> rooms that it may import, as lazyfs/README.md has it; `converter` among them."""
    text = (ROOT / "lazyfs" / "README.md").read_text()
    rows = re.findall(r"^\| `([\w./]+)` \|[^|]*\| ([^|]+) \|$", text, re.MULTILINE)
    beside = re.search(
        r"^Every room may import `errors`\. `converter/` stands beside lazyfs and uses ([^.]+)\.", text, re.MULTILINE
    )
    assert beside is not None
    known = {
        # `errors` is the foundation: a room that knows any other room raises them.
        name.rstrip("/").removesuffix(".py"): frozenset[str]() if cell.strip() == "nothing" else _names(cell) | {"errors"}
        for name, cell in rows
    }
    known["converter"] = frozenset(re.findall(r"`(\w+)`", beside.group(1)))
    return known


def _names(cell: str) -> frozenset[str]:
    return frozenset(part.strip() for part in cell.split(","))


def sources(package: str) -> list[Path]:
    """The Python files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a file; `from a import b` gives `a.b`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) + "." if node.level else ""
            yield from ((node.lineno, f"{base}{node.module or ''}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for all that is not ours, and for the package lazyfs itself."""
    first, _, rest = module.partition(".")
    if first == "converter":
        return first
    return rest.partition(".")[0] if first == "lazyfs" and rest.partition(".")[0] in table() else None


def test_table_is_read() -> None:
    """The table names the rooms that exist, and was understood."""
    rooms = table()
    folders = {path.stem for path in (ROOT / "lazyfs").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert folders - {"__pycache__", "__init__", "__main__", "docs"} | {"converter"} == set(rooms)
    assert rooms["errors"] == frozenset()
    assert rooms["source"] == {"errors", "format", "registry"}
    assert rooms["vfs"] == {"errors", "format", "image", "fetch"}


def test_no_room_knows_itself_in_a_circle() -> None:
    """The table has no cycle: each room's rooms come before it."""
    seen: set[str] = set()
    for room, known in table().items():
        assert known <= seen, f"{room} knows {sorted(known - seen)}, which come after it"
        seen.add(room)


def room_imports() -> dict[str, dict[str, list[str]]]:
    """Room -> room that it imports -> where. `python -m lazyfs` is the command line's other door, and counts as its room."""
    found: dict[str, dict[str, list[str]]] = {room: {} for room in table()}
    for path in (*sources("lazyfs"), *sources("converter")):
        name = path.relative_to(ROOT)
        home = room_of(".".join(name.with_suffix("").parts)) or DISPATCH
        for line, module in imports(path):
            room = room_of(module)
            if room is not None and room != home and (home, room) != (DISPATCH, "converter"):
                found[home].setdefault(room, []).append(f"{name}:{line} imports {module}")
    return found


def test_imports_follow_the_table() -> None:
    """No source file imports from a room that its own may not know."""
    wrong = [
        place
        for home, rooms in room_imports().items()
        for room, places in rooms.items()
        if room not in table()[home]
        for place in places
    ]
    assert not wrong, "\n".join(wrong)


def test_every_permission_is_used() -> None:
    """The table says what a room imports, not what it might."""
    unused = {
        f"{home} does not import {room}"
        for home, rooms in room_imports().items()
        for room in table()[home] - rooms.keys() - {"errors"}
    }
    assert not unused


def test_one_line_dispatches_to_the_converter() -> None:
    """Nothing in lazyfs imports converter but one line in cli."""
    places = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources("lazyfs")
        for line, module in imports(path)
        if module.split(".")[0] == "converter"
    }
    assert len(places) <= 1, sorted(places)
    assert all(place.startswith(f"lazyfs/{DISPATCH}/") for place in places)


@pytest.mark.parametrize("package", ["lazyfs", "converter"])
def test_modules_import_in_no_circle(package: str) -> None:
    """Inside a room too, no module is imported by what it imports, at whatever depth."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources(package)}
    graph = {
        name: {target for _, module in imports(path) for target in (module, module.rpartition(".")[0]) if target in files}
        for name, path in files.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for target in sorted(graph[name] - {name}):
                visit(target, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_shipped_code_needs_neither_tests_nor_bench() -> None:
    """What the wheel holds works without the checkout."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("lazyfs", "converter")
        for path in sources(package)
        for line, module in imports(path)
        if module.split(".")[0] in {"tests", "bench"}
    ]
    assert not wrong, "\n".join(wrong)


def test_converting_needs_no_pyfuse3() -> None:
    """Only the adapter and the mount import pyfuse3: converting works where it is not installed."""
    users = {
        path.relative_to(ROOT / "lazyfs").parts[0]
        for path in sources("lazyfs")
        for _, module in imports(path)
        if module.split(".")[0] == "pyfuse3"
    }
    assert users <= {"fuse", "portable"}


def test_top_level_holds_what_it_may() -> None:
    """The top level is fixed; dotfiles of tools aside."""
    names = {name.split("/")[0] for name in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= names


def test_no_file_is_too_long() -> None:
    """A source file that a reader cannot hold in the head is two files."""
    written = [name for name in tracked() if name.endswith((".py", ".go")) and not name.endswith(GENERATED)]
    lengths = {name: (ROOT / name).read_bytes().count(b"\n") for name in written}
    assert not {name: count for name, count in lengths.items() if count > MAX_LINES}


def test_nothing_refers_to_this_machine() -> None:
    """A clone has nothing beside it: no file speaks of folders outside the repository."""
    outside = re.compile(rb"\.\./sha[r]ed\b|/wor[k]/|\.libra[r]y\b|lfs-ven[v]")  # the brackets keep this line from finding itself
    wrong = [name for name in tracked() if outside.search((ROOT / name).read_bytes())]
    assert not wrong


def test_every_test_says_what_it_holds() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sources("tests")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)
