"""The names of the folders that overlays take files' data from.

An overlay keeps the names that it was mounted with, and outlives the lazyfsd that mounted it: these never change. native/data_layers.py
says in which order they are stacked; gate/gate.py answers below GATE.
"""

from __future__ import annotations

from typing import Final

OBJECTS: Final = "objects"
"""Whole files, by name."""
ARRIVED: Final = "arrived"
"""A second name of each of them."""
GATE: Final = "gate"
"""Where lazyfsd's gate is mounted."""

GATE_OBJECTS: Final = "objects"
"""The gate's folder of files that are not here yet."""
GATE_NOWHERE: Final = "nowhere"
"""The gate's folder that has an error for every name."""
_GATE_RECORD: Final = "record-"


def gate_record(number: int) -> str:
    """The gate's folder for the recording mount `number`: as GATE_OBJECTS, and what is looked up there is recorded."""
    return f"{_GATE_RECORD}{number}"


def recorded_by(name: str) -> int | None:
    """The number of the mount that records what is looked up in the gate's folder `name`; None where that is no such folder."""
    number = name.removeprefix(_GATE_RECORD)
    return int(number) if name != number and number.isdecimal() else None
