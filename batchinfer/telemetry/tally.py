"""Adds up what a run says. Displays and metrics read its snapshots, from whichever thread."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from batchinfer.data import STAGES
from batchinfer.events import (
    BatchFinished,
    EfficiencyMeasured,
    Event,
    OthersCommitted,
    PlanFollowed,
    Retried,
    RunFinished,
    RunStarted,
    StagesTimed,
    UnitCommitted,
    Warned,
    WorkerExited,
    WorkerReady,
)
from batchinfer.telemetry.eta import eta, eta_range
from batchinfer.telemetry.rates import Histogram, Meter
from batchinfer.telemetry.snapshot import Snapshot, WorkerState

if TYPE_CHECKING:
    from batchinfer.data import ErrorCode, RowError

_MAX_SAMPLES = 5
_LAST_BATCHES = 31


@dataclass(slots=True)
class _Worker:
    """One place for a worker, through its deaths."""

    index: int
    device: str = ""
    state: Literal["starting", "running", "restarting", "gone"] = "starting"
    samples: Meter = field(default_factory=Meter)
    computing: Meter = field(default_factory=Meter)
    in_flight: int = 0
    compute_s: float = 0.0
    ready_s: float = 0.0
    ready_at: float | None = None
    load_s: float = 0.0
    deaths: int = 0
    lanes: int = 1
    stages: Mapping[str, float] = field(default_factory=dict)
    stage_meters: dict[str, Meter] = field(default_factory=dict)
    last_rows: deque[int] = field(default_factory=lambda: deque(maxlen=_LAST_BATCHES))
    past_stages: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0
    num_samples: int = 0
    units: int = 0
    rate: float = 0.0
    alone_rate: float = 0.0

    def measured(self, event: StagesTimed | EfficiencyMeasured, now: float) -> None:
        """Note what it says of itself."""
        if isinstance(event, StagesTimed):
            for stage, seconds in event.seconds.items():
                meter = self.stage_meters.setdefault(stage, Meter())
                meter.start(self.ready_at if self.ready_at is not None else now)
                meter.add(now, seconds - self.stages.get(stage, 0.0))
            self.stages = event.seconds
            self.peak_bytes = max(self.peak_bytes, event.peak_bytes)
            return
        self.rate = event.rows / event.seconds if event.seconds else 0.0
        self.alone_rate = event.rows / event.model_s if event.model_s else 0.0

    def state_at(self, now: float, *, ended: bool) -> WorkerState:
        """Return what there is to show of it."""
        lived_s = self.ready_s + (now - self.ready_at if self.ready_at is not None else 0.0)
        return WorkerState(
            index=self.index,
            device=self.device,
            state="gone" if ended else self.state,
            samples_per_second=self.samples.rate(now),
            busy_ratio=min(1.0, self.computing.rate(now) / self.lanes),
            mean_busy_ratio=min(1.0, self.compute_s / lived_s / self.lanes) if lived_s else 0.0,
            load_s=self.load_s,
            deaths=self.deaths,
            batch_rows=statistics.median_high(self.last_rows) if self.last_rows else 0,
            waits={
                stage: min(1.0, meter.rate(now) / self.lanes)
                for stage, meter in self.stage_meters.items()
                if stage != STAGES[0]
            },
            lanes=self.lanes,
            num_samples=self.num_samples,
            units_committed=self.units,
            stage_seconds=self.all_stages(),
            peak_bytes=self.peak_bytes,
        )

    def all_stages(self) -> dict[str, float]:
        """Return the seconds of each stage, those before its deaths included."""
        total = self.past_stages.copy()
        total.update(self.stages)
        return dict(total)


class Tally:
    """Folds events into numbers. An observer like any other; `clock` counts seconds.

    `energy` tells the joules that the run's GPUs have taken, as far as anybody knows.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        energy: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._energy = energy
        self._lock = threading.Lock()
        self._began = clock()
        self._start: RunStarted | None = None
        self._finished: RunFinished | None = None
        self._ended_at: float | None = None
        self._ready_at: float | None = None
        self._warnings = 0
        self._report = ""
        self._begin()

    def _begin(self) -> None:
        """Forget what was counted: a run begins, perhaps the second one for files that came later."""
        self._workers: dict[int, _Worker] = {}
        self._rows, self._samples, self._tokens = Meter(), Meter(), Meter()
        self._batch_seconds = Histogram()
        self._ok = self._error = self._filtered = 0
        self._others_rows = self._others_units = 0
        self._units = self._batches = self._splits = self._num_samples = 0
        self._real_tokens = self._padded_tokens = 0
        self._last_commit: float | None = None
        self._settings: dict[str, Any] = {}
        self._cores = 0
        self._errors: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._error_samples: dict[tuple[ErrorCode, str], RowError] = {}

    def on_event(self, event: Event) -> None:
        """Count an event."""
        with self._lock:
            self._count(event, self._clock())

    def close(self) -> None:
        """Do nothing: a tally can be read after the end."""

    def reported(self, place: str) -> None:
        """Note where the report of the run is."""
        with self._lock:
            self._report = place

    def _count(self, event: Event, now: float) -> None:  # noqa: C901 - a case for each event
        match event:
            case RunStarted():
                self._begin()
                self._start = event
                self._workers = {index: _Worker(index) for index in range(event.num_workers)}
            case OthersCommitted():
                self._others_rows += event.rows
                self._others_units += event.units
            case PlanFollowed():
                self._settings.update({name: value for name, (value, _) in event.settings.items()})
                self._cores = event.cores
            case WorkerReady():
                self._ready(event, now)
            case BatchFinished():
                self._batch(event, now)
            case StagesTimed() | EfficiencyMeasured():
                self._worker(event.worker).measured(event, now)
            case Retried():
                self._retries.update(event.reasons)
            case UnitCommitted():
                self._commit(event, now)
            case WorkerExited():
                self._exit(event, now)
            case Warned():
                self._warnings += 1
            case RunFinished():
                self._finished, self._ended_at = event, now

    def _worker(self, index: int) -> _Worker:
        return self._workers.setdefault(index, _Worker(index))

    def _ready(self, event: WorkerReady, now: float) -> None:
        worker = self._worker(event.worker)
        worker.device, worker.state, worker.load_s = event.device, "running", event.load_s
        worker.ready_at, worker.lanes = now, event.lanes
        self._ready_at = now if self._ready_at is None else self._ready_at
        worker.samples, worker.computing, worker.stage_meters = Meter(), Meter(), {}
        worker.last_rows.clear()
        self._settings.update(event.settings)
        for meter in (worker.samples, worker.computing, self._rows, self._samples, self._tokens):
            meter.start(now)

    def _batch(self, event: BatchFinished, now: float) -> None:
        worker = self._worker(event.worker)
        worker.in_flight += event.rows
        worker.num_samples += event.rows
        worker.compute_s += event.compute_s
        worker.samples.add(now, event.rows)
        worker.computing.add(now, event.compute_s)
        self._rows.add(now, event.rows)
        self._samples.add(now, event.rows)
        self._tokens.add(now, event.real_tokens)
        self._batch_seconds.add(event.compute_s)
        self._batches += 1
        self._splits += event.split
        worker.last_rows.append(event.rows)
        self._num_samples += event.rows
        self._real_tokens += event.real_tokens
        self._padded_tokens += event.padded_tokens

    def _commit(self, event: UnitCommitted, now: float) -> None:
        receipt, worker = event.receipt, self._worker(event.worker)
        settled = receipt.rows_ok + receipt.rows_error + receipt.rows_filtered
        # Its batches were counted when they were computed; rows that met no model were not.
        counted = min(worker.in_flight, receipt.rows_ok + receipt.rows_error)
        worker.in_flight -= counted
        self._rows.add(now, settled - counted)
        self._last_commit = now
        worker.units += 1
        if self._start is not None and self._start.is_claimed and not receipt.won:
            # Two were at it, and the other one's counts.
            self._others_rows += settled
            self._others_units += 1
            return
        self._ok += receipt.rows_ok
        self._error += receipt.rows_error
        self._filtered += receipt.rows_filtered
        self._units += 1
        self._errors.update(receipt.error_codes)
        for error in receipt.errors:
            self._sample(error)

    def _sample(self, error: RowError) -> None:
        """Keep the first row of each kind of failure: first in the input, not the first to be committed."""
        key = (error.code, error.message)
        seen = self._error_samples.get(key)
        if seen is None and len(self._error_samples) >= _MAX_SAMPLES:
            return
        if seen is None or (error.source, error.row) < (seen.source, seen.row):
            self._error_samples[key] = error

    def _exit(self, event: WorkerExited, now: float) -> None:
        worker = self._worker(event.worker)
        if worker.ready_at is not None:
            worker.ready_s += now - worker.ready_at
            worker.ready_at = None
        # What it had computed and not committed is done again.
        self._rows.add(now, -worker.in_flight)
        worker.in_flight = 0
        worker.past_stages.update(worker.stages)
        worker.stages = {}
        worker.state = "restarting" if event.restarts else "gone"
        worker.deaths += event.restarts

    def snapshot(self) -> Snapshot:
        """Return the run as it stands."""
        with self._lock:
            now = self._ended_at if self._ended_at is not None else self._clock()
            return self._snapshot(now)

    def _snapshot(self, now: float) -> Snapshot:
        start, finished = self._start, self._finished
        reused, total = (start.rows_done, start.rows_total) if start else (0, 0)
        mine, others = self._ok + self._error + self._filtered, self._others_rows
        if finished and finished.complete and finished.rows_ok is not None:
            # The whole output was counted, whoever did what.
            total = finished.rows_ok + (finished.rows_error or 0) + (finished.rows_filtered or 0)
            others = max(0, total - reused - mine)
        committed = min(total, reused + others + mine)
        in_flight = sum(worker.in_flight for worker in self._workers.values())
        settled = committed if finished else min(total, committed + in_flight)
        elapsed_s = finished.seconds if finished else now - self._began
        # What others are likely to do of the rest, at the pace of all so far.
        done = settled - reused
        left = round((total - settled) * (1 - others / done)) if done else total - settled
        return Snapshot(
            job=start.job if start else "",
            run=start.run if start else "",
            model=start.model if start else "",
            output=start.output if start else "",
            share=start.share if start else "",
            started=start is not None,
            elapsed_s=elapsed_s,
            # What did not come after it: the run's own clock began a little later than this one.
            start_s=None if self._ready_at is None else max(0.0, elapsed_s - (now - self._ready_at)),
            rows_total=total,
            rows_reused=reused,
            rows_of_others=others,
            rows_settled=settled,
            rows_ok=self._ok,
            rows_error=self._error,
            rows_filtered=self._filtered,
            units_total=start.units_total if start else 0,
            units_reused=start.units_done if start else 0,
            units_of_others=self._others_units,
            units_committed=self._units,
            num_batches=self._batches,
            num_splits=self._splits,
            batch_seconds=self._batch_seconds.cumulative(),
            batch_seconds_sum=self._batch_seconds.total,
            num_samples=self._num_samples,
            real_tokens=self._real_tokens,
            padded_tokens=self._padded_tokens,
            stage_seconds=self._stages(),
            peak_bytes=sum(worker.peak_bytes for worker in self._workers.values()),
            steady_rate=sum(worker.rate for worker in self._workers.values()),
            model_rate=sum(worker.alone_rate for worker in self._workers.values()),
            rows_per_second=(rate := self._rows.rate(now)),
            mean_rows_per_second=(done - others) / elapsed_s if elapsed_s > 0 else 0.0,
            samples_per_second=self._samples.rate(now),
            tokens_per_second=self._tokens.rate(now),
            eta_s=eta(left, rate),
            eta_range_s=eta_range(left, self._rows, now),
            last_commit_s=None if self._last_commit is None else self._last_commit - self._began,
            workers=tuple(
                worker.state_at(now, ended=finished is not None)
                for _, worker in sorted(self._workers.items())
            ),
            errors=dict(self._errors.most_common()),
            retries=dict(self._retries),
            error_samples=tuple(self._error_samples.values()),
            num_warnings=self._warnings,
            devices=start.devices if start else (),
            errors_allowed=start.errors_allowed if start else None,
            price_per_device_hour=start.price_per_device_hour if start else None,
            max_cost=start.max_cost if start else None,
            energy_joules=self._energy(),
            settings=dict(self._settings),
            cores=self._cores,
            report=self._report,
            finished=finished,
        )

    def _stages(self) -> dict[str, float]:
        total: Counter[str] = Counter()
        for worker in self._workers.values():
            total.update(worker.all_stages())
        return dict(total)
