"""Where the time of a device goes: computing, or waiting for one of the stages around it.

A device (or, on a CPU, each lane that computes) is free between the end of one batch and the start of
the next. Each moment in between is booked on what was missing then: the batch's rows were not yet
*read*, or read but not *decoded*, or not *packed* into a batch; the batch was there and its inputs not
yet on the device (*transfer*); results waited to be written, so that no more could be taken (*write*);
or nothing was missing (*launch*). So the stages and *compute* always add up to the whole time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from batchinfer.data import STAGES

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, OutputBatch


_WAITS = 4096
"""Waits that are remembered: a lane may be idle for as many batches as the others compute meanwhile."""


class Timeline:
    """Books the time of so many lanes, from the first unit on. Safe to use from several threads."""

    def __init__(self, lanes: int) -> None:
        self._num_lanes = lanes
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._asked: deque[tuple[float, float]] = deque()
        self._free: dict[int, float] = {}
        self._looked = 0.0
        self._waits: deque[tuple[str, float, float]] = deque(maxlen=_WAITS)
        self._began: float | None = None
        self.last_commit = 0.0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Start to count, unless it has begun."""
        if self._began is None:
            self._began = self._looked = time.perf_counter()

    def asking(self, batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
        """Pass on the batches that a device asks for, and note when it asked and when it got them."""
        source = iter(batches)
        try:
            while True:
                asked = time.perf_counter()
                batch = next(source, None)
                if batch is None:
                    return
                self._asked.append((asked, time.perf_counter()))
                yield batch
        finally:
            # A thread upstream ends before we say that we ended.
            if hasattr(source, "close"):
                source.close()

    def add(self, output: OutputBatch) -> None:
        """Book the time up to the end of a batch, and of the wait before it. Batches come in order."""
        asked, got = self._asked.popleft()
        trail = output.batch.window.trail
        for stage, until in (
            ("write", asked),
            ("read", min(trail.read, got)),
            ("decode", min(trail.decoded, got)),
            ("pack", got),
        ):
            if until > self._looked:
                self._waits.append((stage, self._looked, until))
                self._looked = until
        if output.started:
            ended = output.started + output.compute_s
            with self._lock:
                free = self._free.get(output.lane, self._began or asked)
                self._book(free, output.started)
                self._seconds["compute"] += max(ended - max(output.started, free), 0.0)
                self._free[output.lane] = max(ended, free)

    def _book(self, start: float, stop: float) -> None:
        """Book a gap of a lane on what all of them waited for meanwhile; what is left, on the launch."""
        left = max(stop - start, 0.0)
        for stage, began, ended in reversed(self._waits):
            if ended <= start:
                break
            overlap = max(min(ended, stop) - max(began, start), 0.0)
            self._seconds[stage] += overlap
            left -= overlap
        self._seconds["launch"] += max(left, 0.0)

    def committed(self) -> None:
        """Note that a unit is committed."""
        self.last_commit = time.perf_counter()

    def close(self) -> None:
        """Book the time from the last batches to the last commit, once nothing is computed any more."""
        with self._lock:
            if self._began is None:
                return
            last = max(self._free.values(), default=self._began)
            idle = [self._began] * (self._num_lanes - len(self._free))
            for free in (*self._free.values(), *idle):
                # The others had the last batches.
                self._seconds["launch"] += last - free
                self._seconds["write"] += max(self.last_commit - last, 0.0)

    def seconds(self) -> Mapping[str, float]:
        """Return the seconds of each stage so far, over all lanes."""
        with self._lock:
            return dict(self._seconds)
