"""What happened when, and how long things took, in memory that does not grow with the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

MOST = 240
"""Buckets of a series at most."""


class Series:
    """Sums by name over time, in buckets of one width. Where there are too many, each two become one."""

    def __init__(self, *, width_s: float = 0.5) -> None:
        self.width_s = width_s
        self._buckets: list[dict[str, float]] = []

    def add(self, at_s: float, amounts: Mapping[str, float]) -> None:
        """Add amounts at a time, in seconds from the beginning."""
        index = int(max(at_s, 0.0) / self.width_s)
        while index >= MOST:
            self._halve()
            index //= 2
        while len(self._buckets) <= index:
            self._buckets.append({})
        bucket = self._buckets[index]
        for name, amount in amounts.items():
            bucket[name] = bucket.get(name, 0.0) + amount

    def spread(self, began_s: float, ended_s: float, amounts: Mapping[str, float]) -> None:
        """Add amounts that came about evenly between two times."""
        self.add(ended_s, {})  # From here on, all buckets that it takes are there.
        began_s, width = max(min(began_s, ended_s), 0.0), self.width_s
        length = ended_s - began_s
        if length < width:
            self.add(ended_s, amounts)
            return
        for index in range(int(began_s / width), int(ended_s / width) + 1):
            inside = min((index + 1) * width, ended_s) - max(index * width, began_s)
            if inside > 0:
                share = inside / length
                self.add((index + 0.5) * width, {name: amounts[name] * share for name in amounts})

    def sums(self, name: str) -> list[float]:
        """Return the sum of a name in each bucket."""
        return [float(bucket.get(name, 0.0)) for bucket in self._buckets]

    def means(self, name: str) -> list[float | None]:
        """Return the mean of what `sample` added; None where there was none."""
        pairs = zip(self.sums(name), self.sums(f"{name}#"), strict=True)
        return [total / count if count else None for total, count in pairs]

    def sample(self, at_s: float, values: Mapping[str, float | None]) -> None:
        """Note what some gauges showed at a time."""
        found = {name: value for name, value in values.items() if value is not None}
        self.add(at_s, {**found, **{f"{name}#": 1.0 for name in found}})

    def _halve(self) -> None:
        old, self._buckets = self._buckets, []
        self.width_s *= 2
        for at in range(0, len(old), 2):
            merged = dict(old[at])
            for name, amount in (old[at + 1] if at + 1 < len(old) else {}).items():
                merged[name] = merged.get(name, 0.0) + amount
            self._buckets.append(merged)


class Spread:
    """How values are spread: counts in buckets that grow by the same factor, `per_octave` to a doubling."""

    def __init__(self, *, first: float, per_octave: int) -> None:
        self._first = first
        self._per_octave = per_octave
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.total = self.most = 0.0
        self.least = math.inf

    def add(self, value: float) -> None:
        """Count a value above zero."""
        self._counts[math.floor(math.log2(max(value, self._first) / self._first) * self._per_octave)] += 1
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)

    def percentile(self, share: float) -> float:
        """Return about the value that this share of the values does not exceed; 0 where there are none."""
        so_far = 0
        for index, count in sorted(self._counts.items()):
            so_far += count
            if so_far >= share * self.count:
                middle = self._first * 2 ** ((index + 0.5) / self._per_octave)
                return min(max(middle, self.least), self.most)
        return self.most

    def bars(self, *, at_most: int) -> Iterator[tuple[float, float, int]]:
        """Yield lower bound, upper bound and count of neighbouring buckets, few enough to be drawn."""
        if not self._counts:
            return
        low, high = min(self._counts), max(self._counts)
        wide = math.ceil((high - low + 1) / at_most)
        for start in range(low, high + 1, wide):
            count = sum(self._counts[index] for index in range(start, start + wide))
            edges = (self._first * 2 ** (index / self._per_octave) for index in (start, start + wide))
            yield next(edges), next(edges), count
