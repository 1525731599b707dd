"""Where a device's time goes: every moment of it is booked, on what was missing then."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.data import HostBatch, OutputBatch
from batchinfer.engine import timeline
from batchinfer.engine.timeline import Timeline

MOMENTS = st.floats(0, 0.05)
BATCHES = st.lists(st.tuples(MOMENTS, MOMENTS, MOMENTS, MOMENTS, MOMENTS, st.floats(0.001, 0.1)), max_size=60)


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        """Return the time."""
        return self.now


def play(batches: list[tuple[float, ...]], lanes: int, commit: float) -> tuple[Timeline, float]:
    """Let batches be read, decoded, packed, launched and computed, each after so many seconds, by the lane that
    is free first. Returns the timeline and the seconds from its beginning to the last commit."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "time", clock)
        watch, began = Timeline(lanes), clock.now
        watch.begin()
        free = dict.fromkeys(range(lanes), began)

        def made() -> Iterator[HostBatch]:
            for _, read, decoded, packed, *_ in batches:
                clock.now += read
                trail = SimpleNamespace(read=clock.now, decoded=clock.now + decoded)
                clock.now += decoded + packed
                yield cast("HostBatch", SimpleNamespace(window=SimpleNamespace(trail=trail)))

        asking = watch.asking(made())
        for asks, _, _, _, launch, compute in batches:
            clock.now += asks
            batch: Any = next(iter(asking))
            lane = min(free, key=lambda one: free[one])
            started = max(clock.now, free[lane]) + launch
            free[lane] = started + compute
            output = SimpleNamespace(batch=batch, started=started, compute_s=compute, lane=lane, uploaded=0.0)
            watch.add(cast("OutputBatch", output))
        clock.now = max(clock.now, *free.values()) + commit
        watch.committed(clock.now - commit)
        watch.close()
        return watch, clock.now - began


@given(batches=BATCHES, lanes=st.integers(1, 4), commit=st.floats(0, 1))
def test_the_stages_are_the_whole_time(batches: list[tuple[float, ...]], lanes: int, commit: float) -> None:
    """However batches come, the stages add up to the time of all lanes, to a millionth."""
    watch, whole = play(batches, lanes, commit)
    assert sum(watch.seconds().values()) == pytest.approx(lanes * whole, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("stage", "batch"),
    [
        ("read", (0.0, 0.05, 0.001, 0.001, 0.001, 0.01)),
        ("decode", (0.0, 0.001, 0.05, 0.001, 0.001, 0.01)),
        ("pack", (0.0, 0.001, 0.001, 0.05, 0.001, 0.01)),
        ("write", (0.05, 0.001, 0.001, 0.001, 0.001, 0.01)),
        ("launch", (0.0, 0.001, 0.001, 0.001, 0.05, 0.01)),
        ("compute", (0.0, 0.001, 0.001, 0.001, 0.001, 0.1)),
    ],
)
def test_the_slow_stage_is_named(stage: str, batch: tuple[float, ...]) -> None:
    """Where one stage takes longest, most of the time is booked on it."""
    watch, _ = play([batch] * 20, lanes=1, commit=0.0)
    seconds = dict(watch.seconds())
    assert seconds.pop(stage) > sum(seconds.values())
