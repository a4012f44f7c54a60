"""The histogram of durations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.gate.latency import Latency
from lazyfs.reports.status import BOUNDS


@given(st.lists(st.floats(0, 5), min_size=1), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_a_quantile_is_a_bound_that_so_many_keep(durations: list[float], share: float) -> None:
    """The smallest bound; infinite if the quantile includes durations over all bounds."""
    latency = Latency()
    for each in durations:
        latency.note(each)
    status = latency.status()
    assert status.count == len(durations)
    assert abs(status.seconds - sum(durations)) < 1e-6
    kept = [bound for bound in (*BOUNDS, float("inf")) if sum(each <= bound for each in durations) >= share * len(durations)]
    assert status.quantile(share) == kept[0]


def test_nothing_takes_no_time() -> None:
    """Before anything is counted."""
    assert Latency().status().quantile(0.5) == 0.0
