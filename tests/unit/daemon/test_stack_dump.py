"""What SIGUSR1 makes a process write."""

from __future__ import annotations

import sys

import pytest

from tests.commands import run

PROGRAM = """
import os, signal, threading, time
import trio
from lazyfs.daemon.stack_dump import dump_stacks_on_signal

async def waiting_for_nothing():
    await trio.sleep_forever()

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting_for_nothing)
        await trio.testing.wait_all_tasks_blocked()
        {what}
        nursery.cancel_scope.cancel()

def hanging_thread():
    started.set()
    stop.wait()

started, stop = threading.Event(), threading.Event()
thread = threading.Thread(target=hanging_thread, name="hanging", daemon=True)
thread.start()
started.wait()
dump_stacks_on_signal()
import trio.testing
trio.run(main)
os.kill(os.getpid(), signal.SIGUSR1)
stop.set()
print("goes on")
"""


@pytest.mark.parametrize(
    "what", ["os.kill(os.getpid(), signal.SIGUSR1)", "await trio.to_thread.run_sync(os.kill, os.getpid(), signal.SIGUSR1)"]
)
def test_threads_and_tasks(what: str) -> None:
    """Every thread and task is listed, whether the loop runs a task or waits; the process goes on, also after trio has ended."""
    done = run(sys.executable, "-c", PROGRAM.format(what=what))
    said = done.stderr.decode()
    assert done.stdout == b"goes on\n"
    assert said.count("  | hanging_thread (<string>:") == said.count("thread hanging:\n") == 2
    assert "  __main__.main\n" in said
    assert "    __main__.waiting_for_nothing\n      | waiting_for_nothing (<string>:" in said
    assert said.endswith("tasks:\nnone\n")


def test_threads_that_come_and_go_meanwhile() -> None:
    """Threads whose stacks change during the dump do not crash the process."""
    again = (
        "for _ in range(3000): threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1)).start(); await trio.sleep(0)"
    )
    said = run(sys.executable, "-c", PROGRAM.format(what=again)).stderr.decode()
    assert said.endswith("tasks:\nnone\n")


def test_a_loop_that_never_comes_back() -> None:
    """A task in a busy loop is listed with its current line."""
    busy = "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1)); signal.setitimer(signal.ITIMER_REAL, 0.01)"
    program = PROGRAM.format(what=f"{busy}\n        global told\n        while not told: pass")
    program = program.replace(
        "import trio.testing\n", "import trio.testing\nimport lazyfs.daemon.stack_dump as stacks\ntold = []\n"
    )
    program = program.replace(
        "trio.run(main)",
        "before = stacks.describe_tasks\nstacks.describe_tasks = lambda *where: (told.append(1), before(*where))[1]\ntrio.run(main)",
    )
    said = run(sys.executable, "-c", program).stderr.decode()
    assert "in main\n" in said
    assert "    __main__.waiting_for_nothing\n" in said
