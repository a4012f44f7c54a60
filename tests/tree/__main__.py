"""`python -m tests.tree A B`: prints what tells two directories apart; exit code 1 if anything does."""

from __future__ import annotations

import sys

from tests.tree import compare, walk

if len(sys.argv) != 3:
    sys.exit("usage: python -m tests.tree A B")
left, right = (walk(path) for path in sys.argv[1:])
differences = compare(left, right)
for difference in differences:
    print(difference)
print(f"{len(left)} and {len(right)} paths, {len(differences)} differences")
sys.exit(bool(differences))
