"""A store of the test's own."""

from __future__ import annotations

from tests.unit.store.conftest import directory, store

__all__ = ["directory", "store"]
