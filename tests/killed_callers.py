"""Processes that access files and are killed meanwhile: `python -m tests.killed_callers ROOT COUNT SEED [NAME ...]`.

COUNT callers, some at a time, each opens and reads a file at ROOT that has not been read before: the next of the names, or one of the
toy gate's (tests/toy_gate.py); a caller is killed at a random moment. It ends when all of them have.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

AT_ONCE = 8


def main(root: str, count: int, seed: str, *names: str) -> None:
    """Run until all callers have ended."""
    chance = random.Random(seed)
    alive: list[int] = []
    for number in range(count):
        toy = f"{chance.choice(['file', 'slow'])}{number + 1}-{chance.choice([100, 300_000])}"
        name = names[number] if names else toy
        child = os.fork()
        if child == 0:
            try:
                with open(f"{root}/{name}", "rb") as file:
                    file.read()
            finally:
                os._exit(0)
        alive.append(child)
        if len(alive) == AT_ONCE:
            time.sleep(chance.uniform(0, 0.02))
            victim = alive.pop(chance.randrange(AT_ONCE))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
    for child in alive:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
