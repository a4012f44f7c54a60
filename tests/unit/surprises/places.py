"""Every place where lazyfs starts a task, found in its source, and surprises that are thrown into what is started there."""

from __future__ import annotations

import ast
import sys
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import pytest
import trio
from trio._core._traps import WaitTaskRescheduled
from trio.lowlevel import Abort

import lazyfs
from lazyfs.tasks import Supervisor

ROOT = Path(lazyfs.__file__).parent
SUPERVISOR = "tasks.py"
"""Starts what it is given, by test_tasks.py."""
_STARTS = {"start_soon", "keep_running", "attempt"}


class Place(NamedTuple):
    """One call that starts a task."""

    name: str
    """`FILE FUNCTION: WHAT`: what is the task's kind where it is supervised, else the function."""
    file: str
    first: int
    last: int
    """Lines of the call."""
    is_supervised: bool


@cache
def places() -> dict[str, Place]:
    """All of them, by name."""
    found: dict[str, Place] = {}
    seen: Counter[str] = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        if path != ROOT / SUPERVISOR:
            for call, function in _calls(ast.parse(path.read_bytes()), ()):
                what = call.args[0]
                is_kind = isinstance(what, ast.Constant)
                text = str(what.value) if isinstance(what, ast.Constant) else ast.unparse(what)
                name = f"{path.relative_to(ROOT)} {function}: {text}"
                seen[name] += 1
                if seen[name] > 1:
                    name += f" #{seen[name]}"
                found[name] = Place(name, str(path), call.lineno, call.end_lineno or call.lineno, is_kind)
    return found


def _calls(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[ast.Call, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and _starts(child):
            yield child, ".".join(names)
        inner = (*names, child.name) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else names
        yield from _calls(child, inner)


def _starts(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "keep_running"
    if not isinstance(function, ast.Attribute) or not call.args:
        return False
    return function.attr in _STARTS or (function.attr == "start" and "nursery" in ast.unparse(function.value))


class Injection:
    """Throws `error` into the first task that is started at `place`: where it first waits for something, or else at its end."""

    def __init__(self, place: Place, error: Exception) -> None:
        self._place = place
        self.error = error
        self._is_armed = True
        self._is_spent = False
        self.hits = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for owner, name, position in (
            (Supervisor, "start_soon", 1),
            (Supervisor, "keep_running", 1),
            (Supervisor, "attempt", 1),
            (trio.Nursery, "start_soon", 0),
            (trio.Nursery, "start", 0),
        ):
            patch.setattr(owner, name, self._wrapped(getattr(owner, name), position))

    def _wrapped(self, start: Callable[..., Any], position: int) -> Callable[..., Any]:
        def wrapper(self_: object, *arguments: Any, **options: Any) -> Any:
            caller = sys._getframe(1)
            here = caller.f_code.co_filename == self._place.file and self._place.first <= caller.f_lineno <= self._place.last
            if here and self._is_armed:
                self._is_armed = False
                run = arguments[position]
                arguments = (*arguments[:position], self._surprised(run), *arguments[position + 1 :])
            return start(self_, *arguments, **options)

        return wrapper

    def _surprised(self, run: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def surprised(*arguments: Any, **options: Any) -> object:
            if self._is_spent:  # it is tried again
                return await run(*arguments, **options)
            self._is_spent = True
            coroutine = cast("Coroutine[Any, Any, object]", run(*arguments, **options))
            return await self._driven(coroutine)

        return surprised

    @types.coroutine
    def _driven(self, coroutine: Coroutine[Any, Any, object]) -> Generator[Any, Any, object]:
        """The coroutine, with the surprise in the place of what its first wait would have come to."""
        given = False

        def cancelled() -> NoReturn:
            nonlocal given
            given = True  # to a nursery that waits for its tasks, or to a thread
            self.hits += 1
            raise self.error

        step: Callable[[], Any] = partial(coroutine.send, None)
        while True:
            try:
                trap = step()
            except StopIteration as stop:
                if given:
                    return stop.value
                self.hits += 1
                raise self.error from None
            waits = isinstance(trap, WaitTaskRescheduled)
            if waits and not given and trap.abort_func(cancelled) is Abort.SUCCEEDED:
                given, step = True, self._throw(coroutine)
                continue
            try:
                answer = yield trap
            except BaseException as error:  # noqa: BLE001  it goes where it was meant to go
                step = partial(coroutine.throw, error)
            else:
                step = partial(coroutine.send, answer)
            if waits and not given:
                given, step = True, self._throw(coroutine)

    def _throw(self, coroutine: Coroutine[Any, Any, object]) -> Callable[[], Any]:
        self.hits += 1
        return partial(coroutine.throw, self.error)
