"""Names of the directories from which overlays take file data.

An overlay keeps the names that it was mounted with, and outlives the lazyfsd that mounted it, so these never change.
native/data_layers.py defines their order in the stack; gate/gate.py serves what is below GATE.
"""

from __future__ import annotations

from typing import Final

OBJECTS: Final = "objects"
"""Complete files, by name."""
ARRIVED: Final = "arrived"
"""The second name of each of them."""
GATE: Final = "gate"
"""Mount point of lazyfsd's gate."""

GATE_OBJECTS: Final = "objects"
"""The gate's directory of objects that are not in the store yet."""
GATE_NOWHERE: Final = "nowhere"
"""The gate's directory that returns an error for every name."""
_GATE_RECORD: Final = "record-"


def gate_record(number: int) -> str:
    """The gate's directory for the recording mount `number`: like GATE_OBJECTS, but lookups in it are recorded."""
    return f"{_GATE_RECORD}{number}"


def recorded_by(name: str) -> int | None:
    """The number of the mount whose lookups are recorded in the gate's directory `name`; None if it is not such a directory."""
    number = name.removeprefix(_GATE_RECORD)
    return int(number) if name != number and number.isdecimal() else None
