"""Series and spreads: bounded, and nothing is lost in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.telemetry.series import MOST, Series, Spread

TIMES = st.floats(0, 1e5)


@given(st.lists(st.tuples(TIMES, TIMES, st.floats(0, 100)), max_size=40))
def test_a_series_keeps_its_sum(added: list[tuple[float, float, float]]) -> None:
    """However long it goes on, and whether amounts came at once or between two times: the sum stays, in a
    bounded number of buckets, each in the half of time where it belongs."""
    series = Series()
    for one, other, amount in added:
        series.add(one, {"rows": amount})
        series.spread(min(one, other), max(one, other), {"waited": amount})
    whole = sum(amount for *_, amount in added)
    assert sum(series.sums("rows")) == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert sum(series.sums("waited")) == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert len(series.sums("rows")) <= MOST
    half = MOST // 2
    early = sum(amount for at, _, amount in added if at < half * series.width_s)
    assert sum(series.sums("rows")[:half]) == pytest.approx(early, rel=1e-9, abs=1e-9)


def test_a_gauge_is_a_mean() -> None:
    """Where several readings fall into a bucket, their mean; where none does, None."""
    series = Series(width_s=1.0)
    series.sample(0.1, {"power": 10.0, "memory": None})
    series.sample(0.9, {"power": 30.0})
    series.sample(2.5, {"power": 5.0})
    assert series.means("power") == [20.0, None, 5.0]
    assert series.means("memory") == [None, None, None]


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_percentile_is_near(values: list[float], share: float) -> None:
    """A percentile is within a bucket of the exact one, which is some nine percent wide."""
    spread = Spread(first=1e-5, per_octave=8)
    for value in values:
        spread.add(value)
    exact = sorted(values)[min(len(values), -int(-share * len(values) // 1)) - 1]
    assert spread.percentile(share) == pytest.approx(exact, rel=0.1)
    assert sum(count for *_, count in spread.bars(at_most=5)) == len(values)
    assert len(list(spread.bars(at_most=5))) <= 5
