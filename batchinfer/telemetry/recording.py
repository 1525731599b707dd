"""What a run's report is made of: heard while it goes on, in memory that does not grow with the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from batchinfer.events import (
    BatchFinished,
    Event,
    PlanFollowed,
    RunFinished,
    RunStarted,
    StagesTimed,
    UnitCommitted,
    Warned,
    WorkerExited,
    WorkerReady,
)
from batchinfer.telemetry.devices import Reading
from batchinfer.telemetry.series import Series, Spread

_MOST_STAYS = 200
_MOST_NOTES = 50
_MOST_MOMENTS = 100


@dataclass(slots=True)
class Stay:
    """Units that a worker committed one after the other, and when: seconds since the run began."""

    began: float
    ended: float
    first: int
    last: int
    num_units: int
    num_rows: int


@dataclass(slots=True)
class Lane:
    """What one place for a worker saw. `lives` are (ready, gone, exit code or None), `gone` the end of
    the run where it lived until then."""

    index: int
    device: str = ""
    lives: list[list[float | None]] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    free_since: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    timed_at: float = 0.0

    def commit(self, now: float, unit: int, num_rows: int) -> None:
        """Note a unit; of too many, each two become one."""
        self.stays.append(Stay(self.free_since, now, unit, unit, 1, num_rows))
        self.free_since = now
        if len(self.stays) > _MOST_STAYS:
            pairs = zip(self.stays[::2], self.stays[1::2], strict=False)
            odd = self.stays[-1:] if len(self.stays) % 2 else []
            self.stays = [_merged(one, other) for one, other in pairs] + odd


def _merged(one: Stay, other: Stay) -> Stay:
    return Stay(
        one.began,
        other.ended,
        min(one.first, other.first),
        max(one.last, other.last),
        one.num_units + other.num_units,
        one.num_rows + other.num_rows,
    )


class Recording:
    """Listens to a run. `clock` counts seconds, `wall_clock` is Unix time."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._began = clock()
        self.started_at = wall_clock()
        self.plan: PlanFollowed | None = None
        self.finished: RunFinished | None = None
        self._forget()
        self.gpus: dict[int, Reading] = {}

    def _forget(self) -> None:
        """Begin anew: the run has begun, perhaps the second time for files that came later."""
        self.series, self.gauges = Series(), Series(width_s=1.0)
        self.batch_seconds = Spread(first=1e-5, per_octave=8)
        self.batch_rows = Spread(first=1.0, per_octave=4)
        self.lanes: dict[int, Lane] = {}
        self.notes: list[tuple[float, str, str]] = []
        self.settings: dict[str, tuple[object, str]] = {}

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._began

    def opening(self) -> Recording:
        """Return what is known before the first batch, as a recording that another thread may read."""
        twin = Recording(clock=self._clock, wall_clock=lambda: self.started_at)
        twin.plan, twin.settings, twin.notes = self.plan, dict(self.settings), list(self.notes)
        return twin

    def on_event(self, event: Event) -> None:
        """Take note."""
        now = self.now
        match event:
            case RunStarted():
                self._forget()
                self.lanes = {index: Lane(index) for index in range(event.num_workers)}
            case PlanFollowed():
                self.plan = event
                self.settings.update(event.settings)
            case WorkerReady():
                self._ready(event, now)
            case BatchFinished():
                self.series.add(now, {"rows": event.rows, "tokens": event.real_tokens})
                self.batch_seconds.add(event.compute_s)
                self.batch_rows.add(event.rows)
            case StagesTimed():
                lane = self._lane(event.worker)
                gone = {name: value - lane.stages.get(name, 0.0) for name, value in event.seconds.items()}
                self.series.spread(lane.timed_at, now, gone)
                lane.stages, lane.timed_at = event.seconds, now
            case UnitCommitted(worker=worker, receipt=receipt):
                settled = receipt.rows_ok + receipt.rows_error + receipt.rows_filtered
                self._lane(worker).commit(now, receipt.unit, settled)
            case WorkerExited():
                self._exited(event, now)
            case Warned():
                self.notes += [(now, event.code, event.message)][: _MOST_NOTES - len(self.notes)]
            case RunFinished():
                self.finished = event

    def sample(self, readings: Sequence[Reading]) -> None:
        """Note how the GPUs are doing. Another thread may call it, as long as it is always the same one."""
        values: dict[str, float | None] = {}
        for reading in readings:
            index, sample = reading.gpu.index, reading.sample
            self.gpus[index] = reading
            values[f"{index} utilization"] = sample.utilization_ratio
            values[f"{index} memory"] = sample.memory_used_bytes
            values[f"{index} power"] = sample.power_watts
        self.gauges.sample(self.now, values)

    def _lane(self, index: int) -> Lane:
        return self.lanes.setdefault(index, Lane(index))

    def _ready(self, event: WorkerReady, now: float) -> None:
        lane = self._lane(event.worker)
        lane.device, lane.free_since, lane.timed_at, lane.stages = event.device, now, now, {}
        if len(lane.lives) < _MOST_MOMENTS:
            lane.lives.append([now, None, None])
        for name, value in event.settings.items():
            if "." in name:
                self.settings[name] = (value, "for this device and the model's inputs")

    def _exited(self, event: WorkerExited, now: float) -> None:
        lane = self._lane(event.worker)
        lane.stages = {}
        if lane.lives and lane.lives[-1][1] is None:
            lane.lives[-1][1:] = [now, float(event.code)]
