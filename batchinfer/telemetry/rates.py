"""How fast something goes right now, and how long things take."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

WINDOW_S = 30.0
_GRAIN_S = 0.5
_FEWEST_SLICES = 3

BATCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the batch time histogram's buckets, in seconds."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """How much the rate of one slice of time differs from the next: the standard deviation as a share of
    the mean, over `count` slices of `slice_s` seconds."""

    ratio: float
    slice_s: float
    count: int


class Meter:
    """The rate of something over the last seconds. Its clock is the caller's. What comes within `grain_s` is
    one thing.

    Where one batch takes longer than the window, the window is the last two batches; where nothing
    has come for twice as long as usual, the rate falls towards zero.
    """

    def __init__(self, window_s: float = WINDOW_S, *, grain_s: float = _GRAIN_S) -> None:
        self._window_s = window_s
        self._grain_s = grain_s
        self._total = 0.0
        self._points: deque[tuple[float, float]] = deque()
        self._begin: tuple[float, float] | None = None

    def start(self, now: float) -> None:
        """Begin to measure; what was added before counts for nothing."""
        if not self._points:
            self._points.append((now, self._total))
        if self._begin is None:
            self._begin = (now, self._total)

    def add(self, now: float, amount: float) -> None:
        """Count an amount. Negative where what was counted is lost."""
        self._total += amount
        points = self._points
        if len(points) > 1 and now - points[-2][0] < self._grain_s:
            points[-1] = (now, self._total)
        else:
            points.append((now, self._total))
        # Always leave one point at or before the edge of the window, and never fewer than three.
        while len(points) > 3 and points[1][0] <= now - self._window_s:  # noqa: PLR2004 - see above
            points.popleft()

    def scatter(self) -> Scatter | None:
        """Return how evenly it went; None where there is too little to tell."""
        slices = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(self._points)]
        whole_s = sum(seconds for seconds, _ in slices)
        amount = sum(amount for _, amount in slices)
        if len(slices) < _FEWEST_SLICES or whole_s <= 0 or amount <= 0:
            return None
        mean = amount / whole_s
        variance = sum(s * (a / s - mean) ** 2 for s, a in slices if s > 0) / whole_s
        return Scatter(math.sqrt(variance) / mean, whole_s / len(slices), len(slices))

    def overall(self, now: float) -> float:
        """Return the amount per second since the start."""
        seconds = self.seconds(now)
        return max(0.0, (self._total - self._begin[1]) / seconds) if self._begin and seconds else 0.0

    def seconds(self, now: float) -> float:
        """Return the seconds since the start."""
        return max(0.0, now - self._begin[0]) if self._begin else 0.0

    def rate(self, now: float) -> float:
        """Return the amount per second."""
        if len(self._points) < 2:  # noqa: PLR2004 - a rate lies between two points
            return 0.0
        (begin, before), (end, after) = self._points[0], self._points[-1]
        usual = (end - begin) / (len(self._points) - 1)
        if now - end > 2 * usual + self._grain_s:
            end = now
        return max(0.0, (after - before) / (end - begin)) if end > begin else 0.0


class Histogram:
    """Counts by upper bound, as Prometheus wants them."""

    def __init__(self, bounds: tuple[float, ...] = BATCH_SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> tuple[tuple[str, int], ...]:
        """Return for each bound how many values were not above it; the last is "+Inf"."""
        found, so_far = [], 0
        names = [*map(str, self._bounds), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            so_far += count
            found.append((name, so_far))
        return tuple(found)
