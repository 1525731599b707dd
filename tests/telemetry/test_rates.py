"""Rates over a sliding window, with a clock that is moved by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.telemetry.rates import Histogram, Meter


def test_a_steady_rate_is_that_rate() -> None:
    """Ten a second, in small pieces, is ten a second."""
    meter = Meter()
    meter.start(0.0)
    for tick in range(1, 1001):
        meter.add(tick * 0.1, 1)
    assert meter.rate(100.0) == pytest.approx(10.0, rel=0.02)


def test_a_rate_forgets_what_is_long_past() -> None:
    """A slow first minute does not weigh on what happens now."""
    meter = Meter(window_s=30)
    meter.start(0.0)
    for second in range(1, 61):
        meter.add(second, 1)
    for second in range(61, 121):
        meter.add(second, 100)
    assert meter.rate(120.0) == pytest.approx(100.0)


def test_batches_longer_than_the_window_have_a_rate() -> None:
    """An LLM with a batch a minute runs at its batch per minute, also just before the next one."""
    meter = Meter(window_s=30)
    meter.start(0.0)
    for minute in range(1, 6):
        meter.add(minute * 60.0, 120)
    assert meter.rate(300.0) == pytest.approx(2.0)
    assert meter.rate(359.0) == pytest.approx(2.0)


def test_a_rate_falls_when_nothing_comes() -> None:
    """A run that hangs does not go on claiming its speed."""
    meter = Meter()
    meter.start(0.0)
    for second in range(1, 11):
        meter.add(second, 10)
    assert meter.rate(10.0) == pytest.approx(10.0)
    assert meter.rate(100.0) == pytest.approx(1.0)
    assert meter.rate(1000.0) < 0.2


def test_nothing_yet_is_zero() -> None:
    """Before the first amount there is no rate, and the time before the start does not count."""
    meter = Meter()
    assert meter.rate(5.0) == 0.0
    meter.start(100.0)
    assert meter.rate(100.0) == 0.0
    meter.add(101.0, 7)
    assert meter.rate(101.0) == pytest.approx(7.0)


def test_what_is_lost_is_taken_back() -> None:
    """A worker's death makes the rate smaller, never negative."""
    meter = Meter()
    meter.start(0.0)
    meter.add(10.0, 100)
    meter.add(20.0, -60)
    assert meter.rate(20.0) == pytest.approx(2.0)
    meter.add(21.0, -100)
    assert meter.rate(21.0) == 0.0


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 1000)), min_size=1, max_size=200))
def test_a_rate_is_between_the_slowest_and_the_fastest(steps: list[tuple[float, int]]) -> None:
    """Whatever the beat, the rate lies within the rates of the single steps."""
    meter, now = Meter(), 0.0
    meter.start(0.0)
    for wait, amount in steps:
        now += wait
        meter.add(now, amount)
    fastest = max(amount / wait for wait, amount in steps)
    slowest = min(amount / wait for wait, amount in steps)
    assert slowest * (1 - 1e-6) <= meter.rate(now) <= fastest * (1 + 1e-6)


def test_points_are_bounded() -> None:
    """A million batches leave no more points than the window has grains."""
    meter = Meter(window_s=10)
    for tick in range(20_000):
        meter.add(tick * 0.01, 1)
    assert len(meter._points) < 60


@given(st.lists(st.floats(0, 1000)))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    """Cumulative counts never fall, the last is everything, and bounds are inclusive."""
    histogram = Histogram((0.5, 1.0))
    for value in values:
        histogram.add(value)
    assert histogram.cumulative() == (
        ("0.5", sum(value <= 0.5 for value in values)),
        ("1.0", sum(value <= 1.0 for value in values)),
        ("+Inf", len(values)),
    )
    assert histogram.total == pytest.approx(sum(values))
