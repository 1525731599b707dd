"""Where the time of a device goes: computing, or waiting for one of the stages around it.

A device (or, on a CPU, each lane that computes) is free between the end of one batch and the start of
the next. Each moment in between is booked on what was missing then: the batch's rows were not yet
*read*, or read but not *decoded*, or not *packed* into a batch; the batch was there and its inputs not
yet on the device (*transfer*); no more results could be taken, because earlier ones were still being
*postprocessed*, *written* or *committed*; or nothing was missing (*launch*). So the stages and *compute*
always add up to the whole time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from batchinfer.data import STAGES

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, OutputBatch


_COMMITS = 64
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
        self._done: deque[tuple[str, float, float]] = deque(maxlen=_WAITS)
        self._commits: deque[tuple[float, float]] = deque(maxlen=_COMMITS)
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
        if asked > self._looked:
            with self._lock:
                self._waits += self._backlog(self._looked, asked)
            self._looked = asked
        for stage, until in (
            ("read", min(trail.read, got)),
            ("decode", min(trail.decoded, got)),
            ("pack", got),
            ("transfer", output.uploaded),
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

    @contextmanager
    def taking(self, stage: str) -> Iterator[None]:
        """Note that whoever takes the results is busy with a stage meanwhile. Only that thread calls it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._done.append((stage, began, time.perf_counter()))

    def _backlog(self, start: float, stop: float) -> Iterator[tuple[str, float, float]]:
        """Cut a time in which no results were taken by what was done with the earlier ones: where whoever
        takes them was not busy itself, a unit was being committed, or else written."""
        while self._done and self._done[0][2] <= start:
            self._done.popleft()
        at = start
        for stage, began, ended in self._done:
            inside = max(began, at), min(ended, stop)
            if inside[0] < inside[1]:
                yield from self._published(at, inside[0])
                yield (stage, *inside)
                at = inside[1]
        yield from self._published(at, stop)

    def _published(self, start: float, stop: float) -> Iterator[tuple[str, float, float]]:
        """Cut a time into pieces in which a unit was being committed, and others."""
        at = start
        for began, ended in sorted(self._commits):
            inside = max(began, at), min(ended, stop)
            if inside[0] < inside[1]:
                yield from [("write", at, inside[0])] if at < inside[0] else []
                yield ("commit", *inside)
                at = inside[1]
        if at < stop:
            yield ("write", at, stop)

    def committed(self, encoded: float) -> None:
        """Note that a unit is committed, which was written at `encoded`."""
        now = time.perf_counter()
        self.last_commit = now
        with self._lock:
            self._commits.append((encoded, now))

    def close(self) -> None:
        """Book the time from the last batches to the last commit, once nothing is computed any more."""
        with self._lock:
            if self._began is None:
                return
            last = max(self._free.values(), default=self._began)
            idle = [self._began] * (self._num_lanes - len(self._free))
            left = list(self._backlog(last, max(self.last_commit, last)))
            for free in (*self._free.values(), *idle):
                # The others had the last batches.
                self._seconds["launch"] += last - free
                for stage, began, ended in left:
                    self._seconds[stage] += ended - began

    def seconds(self) -> Mapping[str, float]:
        """Return the seconds of each stage so far, over all lanes."""
        with self._lock:
            return dict(self._seconds)
