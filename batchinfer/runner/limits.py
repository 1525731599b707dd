"""What a run may take at most: time, rows, device-hours, money. It stops there, at the border of a unit."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from batchinfer.errors import Interrupted

if TYPE_CHECKING:
    from batchinfer.config.limits import LimitsOptions
    from batchinfer.data import Receipt, Unit
    from batchinfer.runner.messages import Assign
    from batchinfer.runner.work import Work

_HOUR_S = 3600.0


class LimitedWork:
    """Work that ends at the limits of the job. `began` is the run's start, by `time.monotonic`.

    Rows are counted as planned. Where a limit of time is near, no unit is begun that would not end before it,
    as far as the units before it tell: they are timed from when they were handed out, for a new one
    will wait in the same queue.
    """

    def __init__(self, work: Work, limits: LimitsOptions, *, num_devices: int, began: float) -> None:
        self._work = work
        self._max_rows = limits.max_rows
        self._num_rows = 0
        self._ends: dict[str, float] = {}
        if limits.deadline is not None:
            self._ends[f"limits.deadline ({limits.deadline})"] = _end_of(limits.deadline, began)
        if limits.max_device_hours is not None:
            seconds = limits.max_device_hours * _HOUR_S / num_devices
            self._ends[f"limits.max_device_hours ({limits.max_device_hours:g})"] = began + seconds
        if limits.max_cost is not None and limits.price_per_device_hour:
            seconds = limits.max_cost / limits.price_per_device_hour * _HOUR_S / num_devices
            self._ends[f"limits.max_cost ({limits.max_cost:g})"] = began + seconds
        self._begun: dict[int, float] = {}
        self._unit_s = 0.0
        self.reached: str | None = None
        """The limit at which no more was handed out."""

    def begin(self) -> None:
        """Raise Interrupted where a limit is over before anything was begun: then no model need be loaded."""
        self._look(time.monotonic())
        self.close()

    def take(self) -> Assign | None:
        """Return a unit to do; None once a limit is reached."""
        now = time.monotonic()
        self._look(now)
        if self.reached:
            return None
        assign = self._work.take()
        if assign is not None:
            self._num_rows += assign.unit.num_rows
            self._begun[assign.unit.index] = now
        return assign

    def give_back(self, units: Iterable[Unit]) -> None:
        """Take back what a worker did not finish."""
        back = list(units)
        self._num_rows -= sum(unit.num_rows for unit in back)
        for unit in back:
            self._begun.pop(unit.index, None)
        self._work.give_back(back)

    def done(self, receipt: Receipt) -> None:
        """Note a committed unit, and how long it took from its assignment on."""
        begun = self._begun.pop(receipt.unit, None)
        if begun is not None:
            self._unit_s = max(self._unit_s, time.monotonic() - begun)
        self._work.done(receipt)

    def finished(self) -> bool:
        """Tell whether nothing is left to hand out."""
        return self.reached is not None or self._work.finished()

    def check(self) -> None:
        """Raise what ended the work from outside, or Interrupted where a limit of time is over."""
        self._work.check()
        now = time.monotonic()
        for name, end in self._ends.items():
            if now > end and self._begun:
                raise _stopped(name)

    def _look(self, now: float) -> None:
        """Note the limit that would be passed by one more unit."""
        near = [name for name, end in self._ends.items() if now + self._unit_s > end]
        if self._max_rows is not None and self._num_rows >= self._max_rows:
            near.append(f"limits.max_rows ({self._max_rows:,})")
        if near and not self._work.finished():
            self.reached = near[0]

    def close(self) -> None:
        """Raise Interrupted where a limit left something undone."""
        if self.reached is not None:
            raise _stopped(self.reached)


def _end_of(deadline: str | float, began: float) -> float:
    """Return when a deadline is, by the monotonic clock: so many seconds after the start, or a time."""
    if not isinstance(deadline, str):
        return began + deadline
    at = dt.datetime.fromisoformat(deadline)
    return time.monotonic() + (at.timestamp() - time.time())


def _stopped(name: str) -> Interrupted:
    return Interrupted(
        f"stopped at {name}; what was committed is kept", hint="run the same command to resume"
    )
