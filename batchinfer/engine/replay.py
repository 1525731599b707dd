"""How fast the model is alone: batches of a run, computed again with nothing around them.

A run that is measured keeps some of its batches, evenly spread over it. When everything is committed, the
device computes them once more, from memory and without reading, decoding or writing. Their share of the
run's computing says how long the whole run would have taken so.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, OutputBatch

_MAX_BYTES = 64 * 1024 * 1024
_ENOUGH_S = 1.0
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Rows that went through the model, the seconds from the first batch to the last commit, and the
    seconds that the model alone would have taken."""

    rows: int
    seconds: float
    model_s: float


class Sample:
    """Keeps batches of a run, evenly spread: every one at first, then every second, every fourth, ..."""

    def __init__(self, lanes: int) -> None:
        self._enough_s = _ENOUGH_S * lanes
        self._kept: list[OutputBatch] = []
        self._stride = 1
        self._count = 0
        self._rows = 0
        self._compute_s = 0.0
        self._began = 0.0

    def add(self, output: OutputBatch) -> None:
        """Take note of a batch that was computed."""
        self._began = self._began or output.started
        self._rows += len(output.batch.rows)
        self._compute_s += output.compute_s
        if self._count % self._stride == 0:
            self._kept.append(output)
        self._count += 1
        while len(self._kept) > 1 and self._is_too_much():
            self._kept = self._kept[::2]
            self._stride *= 2

    def _is_too_much(self) -> bool:
        seconds = sum(output.compute_s for output in self._kept)
        num_bytes = sum(_num_bytes(output.batch) for output in self._kept)
        return seconds > self._enough_s or num_bytes > _MAX_BYTES

    def measure(
        self, compute: Callable[[Iterable[HostBatch]], Iterable[Any]], *, committed: float
    ) -> Efficiency | None:
        """Compute the kept batches again, three times, and compare; `committed` is when the last commit
        was, in seconds of `time.perf_counter`. None where the run computed nothing."""
        if not self._kept:
            return None
        batches = [output.batch for output in self._kept]
        # Enough of them to fill every lane evenly to the end.
        sampled_s = sum(output.compute_s for output in self._kept)
        times = max(1, math.ceil(self._enough_s / max(sampled_s, 1e-6)))
        rounds = [_seconds(compute, batches, times) / times for _ in range(_ROUNDS)]
        model_s = statistics.median(rounds) * self._compute_s / sampled_s
        return Efficiency(self._rows, committed - self._began, model_s)


def _seconds(
    compute: Callable[[Iterable[HostBatch]], Iterable[Any]], batches: list[HostBatch], times: int
) -> float:
    began = time.perf_counter()
    for _ in compute(itertools.chain.from_iterable(itertools.repeat(batches, times))):
        pass
    return time.perf_counter() - began


def _num_bytes(batch: HostBatch) -> int:
    return sum(column.nbytes for column in batch.tensors.values())
