"""Flights and their runs: a model in which runs begin, complete flights, end and are given up in any order."""

from __future__ import annotations

from collections import Counter

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import Unreachable
from lazyfs.fetch.flight import Flight, RunFlights, SourceFlights

CHUNKS = st.integers(0, 5)
RUNS = st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), RUNS, st.sets(CHUNKS, min_size=1)),
        st.tuples(st.just("read"), CHUNKS, st.none()),
        st.tuples(st.just("complete"), RUNS, CHUNKS),
        st.tuples(st.just("cut"), RUNS, st.sets(CHUNKS)),
        st.tuples(st.just("end"), RUNS, st.booleans()),
        st.tuples(st.just("give up"), RUNS, st.none()),
        st.tuples(st.just("leave"), CHUNKS, st.none()),
    ),
    max_size=40,
)


def named(chunk: int) -> bytes:
    return b"%d" % chunk


class Reader:
    """Waits for a flight, and records the result."""

    def __init__(self, flight: Flight, chunk: int) -> None:
        self.run, self.chunk = flight.run, chunk
        self.scope = trio.CancelScope()
        self.answered = False
        self._flight = flight

    async def wait(self) -> None:
        with self.scope:
            try:
                data = await self._flight.wait()
                answer = bytes(data) if data is not None else b""
            except Unreachable as error:
                answer = str(error).encode()
            assert answer in {b"", b"run %d" % id(self.run), b"%d of %d" % (self.chunk, id(self.run))}
            self.answered = True


class Model:
    """A source's flights, its runs by reusable names, and the waiting readers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.flights = SourceFlights()
        self.runs: dict[int, RunFlights] = {}
        self.abandoned: list[RunFlights] = []
        """Given up, but not ended."""
        self.readers: list[Reader] = []
        self._nursery = nursery

    async def step(self, what: str, name: int, argument: object) -> None:
        run = self.runs.get(name)
        if what == "begin" and run is None:
            free = {chunk for chunk in argument if named(chunk) not in self.flights}  # type: ignore[attr-defined]
            self.runs[name] = self.flights.start_run(map(named, argument))  # type: ignore[call-overload]
            assert {chunk for chunk in range(6) if named(chunk) in self.runs[name]} == free
        elif what == "read":
            flight = self.flights.get(named(name))
            if flight is not None:
                self.readers.append(Reader(flight, name))
                self._nursery.start_soon(self.readers[-1].wait)
        elif what == "leave":
            for reader in self.readers:
                if reader.chunk == name:
                    reader.scope.cancel()
        elif run is not None:
            if what == "complete":
                for each in (run, *self.abandoned):  # a run that was given up may still deliver it
                    each.complete(named(argument), memoryview(b"%d of %d" % (argument, id(each))))  # type: ignore[arg-type,str-bytes-safe]
            elif what == "cut":
                run.complete_others({named(chunk) for chunk in argument})  # type: ignore[attr-defined]
            elif what == "end":
                run.complete_all(Unreachable(f"run {id(run)}") if argument else None)
                del self.runs[name]
            elif what == "give up":
                run.give_up()
                assert not run
                self.abandoned.append(self.runs.pop(name))
        await wait_all_tasks_blocked()
        self.check()

    def check(self) -> None:
        for reader in self.readers:
            in_the_air = named(reader.chunk) in reader.run
            assert reader.answered or reader.scope.cancelled_caught or in_the_air, "whoever waits, waits for something"
        self.readers = [each for each in self.readers if not (each.answered or each.scope.cancelled_caught)]
        waiting = Counter(id(reader.run) for reader in self.readers)
        for run in (*self.runs.values(), *self.abandoned):
            assert run.waiting == waiting[id(run)]
        for chunk in range(6):
            flight = self.flights.get(named(chunk))
            owners = [run for run in self.runs.values() if named(chunk) in run]
            assert owners == ([] if flight is None else [flight.run])


@settings(max_examples=150)
@given(STEPS)
def test_every_reader_gets_a_result_of_its_own_run(steps: list[tuple[str, int, object]]) -> None:
    """In any order: no run completes another run's flight, and at the end no reader waits."""

    async def play() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                model = Model(nursery)
                for step in steps:
                    await model.step(*step)
                for name in list(model.runs):
                    await model.step("end", name, False)
                assert not model.readers

    trio.run(play)


async def test_closing_completes_all_flights() -> None:
    """The flights of all runs of a source get the error."""
    flights = SourceFlights()
    runs = [flights.start_run([b"a", b"b"]), flights.start_run([b"b", b"c"])]
    errors: list[str] = []

    async def wait(flight: Flight) -> None:
        try:
            await flight.wait()
        except Unreachable as error:
            errors.append(str(error))

    async with trio.open_nursery() as nursery:
        for digest in (b"a", b"b", b"c"):
            flight = flights.get(digest)
            assert flight is not None
            nursery.start_soon(wait, flight)
        await wait_all_tasks_blocked()
        flights.complete_all(Unreachable("gone"))
    assert errors == ["gone"] * 3 and not any(runs)
