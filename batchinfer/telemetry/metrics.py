"""A run as Prometheus metrics: made anew from what it has said whenever somebody collects them.

The names are an interface: dashboards and alerts depend on them.
"""

from __future__ import annotations

import datetime as dt
import functools
import importlib.metadata
import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from batchinfer.data import QUEUES, STAGES, ErrorCode
from batchinfer.events import (
    BatchFinished,
    Event,
    RunStarted,
    StagesTimed,
    UnitCommitted,
    WorkerExited,
    WorkerReady,
)
from batchinfer.telemetry.compat_metrics import compat_metrics
from batchinfer.telemetry.gpu_metrics import gpu_metrics
from batchinfer.telemetry.gpu_state_metrics import gpu_state_metrics
from batchinfer.telemetry.rates import WINDOW_S, Histogram
from batchinfer.transient import REASONS

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from batchinfer.config.limits import LimitsOptions
    from batchinfer.telemetry.devices import Devices
    from batchinfer.telemetry.snapshot import Snapshot
    from batchinfer.telemetry.tally import Tally

_WHILE = f"over the last {WINDOW_S:.0f} seconds, or over the whole run once it has ended"
_STATES = ("starting", "running", "restarting", "gone")

BATCH_ROWS = tuple(float(4**power) for power in range(10))
"""Upper bounds of the batch size histogram's buckets, in rows."""


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """Return a registry with the metrics of some collectors, and nothing about this process."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    return registry


class RunMetrics:
    """Collects the metrics of one run. Labels have a fixed number of values: no file, row or message.

    It hears the events too, after the tally, for what only metrics show. `limits` are the job's, for its
    deadline; `compat_names` adds the common names.
    """

    def __init__(
        self,
        tally: Tally,
        devices: Devices,
        *,
        limits: LimitsOptions | None = None,
        compat_names: bool = False,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._tally = tally
        self._devices = devices
        self._compat_names = compat_names
        self._wall_clock = wall_clock
        self._began_at = wall_clock()
        self._deadline = _deadline(limits, self._began_at)
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._batch_rows = Histogram(BATCH_ROWS)
        self._queues: dict[int, Mapping[str, int]] = {}
        self._progress_at = self._wall_clock()

    def on_event(self, event: Event) -> None:
        """Take note of progress."""
        with self._lock:
            match event:
                case RunStarted():
                    self._begin()
                case BatchFinished(rows=rows):
                    self._batch_rows.add(rows)
                case WorkerReady() | UnitCommitted():
                    pass
                case StagesTimed(worker=worker):
                    self._queues[worker] = event.queue_bytes
                    return
                case WorkerExited(worker=worker):
                    self._queues.pop(worker, None)
                    return
                case _:
                    return
            self._progress_at = self._wall_clock()

    def close(self) -> None:
        """Do nothing: it is read after the end."""

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not ask the devices."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as it is now."""
        snapshot = self._tally.snapshot()
        readings = self._devices.readings(snapshot)
        samples, tokens = _speeds(snapshot)
        yield from _rows(snapshot)
        yield from self._times(snapshot)
        yield _gauge("samples_per_second", f"Rows through the model per second, {_WHILE}.", samples)
        yield _gauge("tokens_per_second", f"Tokens per second, padding left out, {_WHILE}.", tokens)
        yield from self._batches(snapshot)
        yield from _workers(snapshot)
        yield from gpu_metrics(readings)
        yield from gpu_state_metrics(readings)
        yield _build()
        if self._compat_names:
            yield from compat_metrics(
                snapshot, readings, samples_per_second=samples, tokens_per_second=tokens
            )

    def _times(self, snapshot: Snapshot) -> Iterator[Metric]:
        finished, eta_s = snapshot.finished, snapshot.eta_s
        running = snapshot.started and finished is None
        yield _gauge("running", "1 from the start of the run to its end, 0 afterwards.", running)
        yield _gauge("start_timestamp_seconds", "When the process began, in Unix time.", self._began_at)
        yield _gauge(
            "last_progress_timestamp_seconds",
            "When a batch or a unit was last finished, or a worker ready, in Unix time.",
            self._progress_at,
        )
        yield _gauge(
            "eta_seconds",
            "Seconds until the run ends at its present rate; NaN where nobody can tell.",
            math.nan if eta_s is None or (finished is not None and not finished.complete) else eta_s,
        )
        if self._deadline is not None:
            yield _gauge("deadline_timestamp_seconds", "When the run must end, in Unix time.", self._deadline)
        if snapshot.cost is not None:
            yield CounterMetricFamily(
                "batchinfer_cost",
                "What the devices have cost so far, in the currency of limits.price_per_device_hour.",
                value=snapshot.cost,
            )

    def _batches(self, snapshot: Snapshot) -> Iterator[Metric]:
        yield CounterMetricFamily("batchinfer_batches", "Forward passes.", value=snapshot.num_batches)
        yield CounterMetricFamily(
            "batchinfer_batch_splits",
            "Batches that were computed in pieces, as they failed or did not fit into memory.",
            value=snapshot.num_splits,
        )
        rows = HistogramMetricFamily("batchinfer_batch_rows", "Rows of a forward pass.")
        with self._lock:
            rows.add_metric([], list(self._batch_rows.cumulative()), self._batch_rows.total)
        yield rows
        seconds = HistogramMetricFamily(
            "batchinfer_batch_seconds", "Seconds that a forward pass took on the device."
        )
        seconds.add_metric([], list(snapshot.batch_seconds), snapshot.batch_seconds_sum)
        yield seconds
        tokens = CounterMetricFamily(
            "batchinfer_tokens", "Tokens that were computed, by what they were.", labels=["kind"]
        )
        tokens.add_metric(["real"], snapshot.real_tokens)
        tokens.add_metric(["padding"], snapshot.padded_tokens - snapshot.real_tokens)
        yield tokens
        stages = CounterMetricFamily(
            "batchinfer_stage_seconds",
            "Seconds of the devices: computing, or waiting by what was missing.",
            labels=["stage"],
        )
        for stage in STAGES:
            stages.add_metric([stage], snapshot.stage_seconds.get(stage, 0.0))
        yield stages
        queues = GaugeMetricFamily(
            "batchinfer_queue_bytes",
            "Bytes that wait in the workers, by who put them there.",
            labels=["queue"],
        )
        with self._lock:
            waiting = list(self._queues.values())
        for queue in QUEUES:
            queues.add_metric([queue], sum(found.get(queue, 0) for found in waiting))
        yield queues


def _rows(snapshot: Snapshot) -> Iterator[Metric]:
    rows = CounterMetricFamily("batchinfer_rows", "Rows committed by this run.", labels=["outcome"])
    rows.add_metric(["ok"], snapshot.rows_ok)
    rows.add_metric(["error"], snapshot.rows_error)
    rows.add_metric(["filtered"], snapshot.rows_filtered)
    yield rows
    planned = snapshot.rows_total - snapshot.rows_reused - snapshot.rows_of_others
    help_ = "Rows that were not committed when the run began, without those that other processes have done."
    yield _gauge("rows_planned", help_, planned)
    units = GaugeMetricFamily(
        "batchinfer_units", "Units of the plan, by what became of them.", labels=["state"]
    )
    units.add_metric(["reused"], snapshot.units_reused)
    units.add_metric(["committed"], snapshot.units_committed)
    units.add_metric(["pending"], max(0, snapshot.units_total - snapshot.units_done))
    yield units
    errors = CounterMetricFamily("batchinfer_errors", "Failed rows, by why they failed.", labels=["code"])
    # Every code, also those at zero: a series that begins at its first value has no rate.
    for code in map(str, ErrorCode):
        errors.add_metric([code], snapshot.errors.get(code, 0))
    yield errors
    retries = CounterMetricFamily(
        "batchinfer_retries", "Calls made again, by why they had failed.", labels=["reason"]
    )
    for reason in REASONS:
        retries.add_metric([reason], snapshot.retries.get(reason, 0))
    yield retries


def _speeds(snapshot: Snapshot) -> tuple[float, float]:
    """Return samples and tokens per second: now, or over the whole of a run that has ended."""
    finished = snapshot.finished
    if finished is None:
        return snapshot.samples_per_second, snapshot.tokens_per_second
    seconds = finished.seconds or math.inf
    return snapshot.num_samples / seconds, snapshot.real_tokens / seconds


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    workers = GaugeMetricFamily("batchinfer_workers", "Workers, by what they do.", labels=["state"])
    for state in _STATES:
        workers.add_metric([state], sum(worker.state == state for worker in snapshot.workers))
    yield workers
    yield CounterMetricFamily(
        "batchinfer_worker_restarts",
        "Workers that died and were replaced.",
        value=snapshot.num_restarts,
    )
    busy = snapshot.busy_ratio if snapshot.finished is None else snapshot.mean_busy_ratio
    yield _gauge(
        "device_idle_ratio",
        f"Share of time in which the devices did not compute, {_WHILE}; NaN while none is ready.",
        math.nan if busy is None else 1 - busy,
    )


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("batchinfer-pipeline")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _build() -> Metric:
    info = GaugeMetricFamily("batchinfer_build_info", "1; the versions.", labels=["version", "python"])
    info.add_metric([_version(), platform.python_version()], 1)
    return info


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"batchinfer_{name}", text, value=float(value))


def _deadline(limits: LimitsOptions | None, began_at: float) -> float | None:
    """Return when the job must end, in Unix time."""
    if limits is None or limits.deadline is None:
        return None
    if isinstance(limits.deadline, str):
        return dt.datetime.fromisoformat(limits.deadline).timestamp()
    return began_at + limits.deadline
