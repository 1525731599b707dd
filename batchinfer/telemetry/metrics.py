"""A run as Prometheus metrics: made anew from its tally whenever somebody collects them.

The names are an interface: dashboards and alerts depend on them.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from batchinfer.data import STAGES, ErrorCode
from batchinfer.telemetry.gpu_state_metrics import gpu_state_metrics
from batchinfer.telemetry.rates import WINDOW_S
from batchinfer.transient import REASONS

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Devices, Reading
    from batchinfer.telemetry.snapshot import Snapshot
    from batchinfer.telemetry.tally import Tally

_WHILE = f"over the last {WINDOW_S:.0f} seconds, or over the whole run once it has ended"


def run_registry(
    tally: Tally, devices: Devices, *, wall_clock: Callable[[], float] = time.time
) -> CollectorRegistry:
    """Return a registry of its own with the run's metrics, and nothing about this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunMetrics(tally, devices, wall_clock=wall_clock))
    return registry


class RunMetrics:
    """Collects the metrics of one run. Labels have a fixed number of values: no file, row or message."""

    def __init__(
        self, tally: Tally, devices: Devices, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._tally = tally
        self._devices = devices
        self._wall_clock = wall_clock
        self._succeeded_at: float | None = None

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not ask the devices."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as it is now."""
        snapshot = self._tally.snapshot()
        yield from _rows(snapshot)
        yield from _speeds(snapshot)
        yield from _batches(snapshot)
        readings = self._devices.readings(snapshot)
        yield from _gpus(readings)
        yield from gpu_state_metrics(readings)
        yield from self._success(snapshot)
        try:
            version = importlib.metadata.version("batchinfer-pipeline")
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        info = GaugeMetricFamily("batchinfer_build_info", "1; the versions.", labels=["version", "python"])
        info.add_metric([version, platform.python_version()], 1)
        yield info

    def _success(self, snapshot: Snapshot) -> Iterator[Metric]:
        finished = snapshot.finished
        if finished is None or not finished.complete or finished.exit_code:
            return  # what an earlier run left stays
        if self._succeeded_at is None:
            self._succeeded_at = self._wall_clock()
        yield GaugeMetricFamily(
            "batchinfer_last_success_timestamp_seconds",
            "When a run of this job was last complete, in Unix time.",
            value=self._succeeded_at,
        )


def _rows(snapshot: Snapshot) -> Iterator[Metric]:
    rows = CounterMetricFamily("batchinfer_rows", "Rows committed by this run.", labels=["outcome"])
    rows.add_metric(["ok"], snapshot.rows_ok)
    rows.add_metric(["error"], snapshot.rows_error)
    rows.add_metric(["filtered"], snapshot.rows_filtered)
    yield rows
    units = GaugeMetricFamily(
        "batchinfer_units", "Units of the plan, by what became of them.", labels=["state"]
    )
    units.add_metric(["reused"], snapshot.units_reused)
    units.add_metric(["committed"], snapshot.units_committed)
    done = snapshot.units_reused + snapshot.units_committed
    units.add_metric(["pending"], max(0, snapshot.units_total - done))
    yield units
    errors = CounterMetricFamily("batchinfer_errors", "Failed rows, by why they failed.", labels=["code"])
    # Every code, also those at zero: what a push leaves out stays in the gateway as it was.
    for code in map(str, ErrorCode):
        errors.add_metric([code], snapshot.errors.get(code, 0))
    yield errors
    retries = CounterMetricFamily(
        "batchinfer_retries", "Calls made again, by why they had failed.", labels=["reason"]
    )
    for reason in REASONS:
        retries.add_metric([reason], snapshot.retries.get(reason, 0))
    yield retries


def _speeds(snapshot: Snapshot) -> Iterator[Metric]:
    finished = snapshot.finished
    samples, tokens = snapshot.samples_per_second, snapshot.tokens_per_second
    if finished is not None:
        samples = snapshot.num_samples / finished.seconds if finished.seconds else 0.0
        tokens = snapshot.real_tokens / finished.seconds if finished.seconds else 0.0
    yield GaugeMetricFamily(
        "batchinfer_samples_per_second", f"Rows through the model per second, {_WHILE}.", value=samples
    )
    yield GaugeMetricFamily(
        "batchinfer_tokens_per_second", f"Tokens per second, padding left out, {_WHILE}.", value=tokens
    )
    eta_s = snapshot.eta_s
    yield GaugeMetricFamily(
        "batchinfer_eta_seconds",
        "Seconds until the run ends at its present rate; NaN where nobody can tell.",
        value=math.nan if eta_s is None or (finished is not None and not finished.complete) else eta_s,
    )


def _batches(snapshot: Snapshot) -> Iterator[Metric]:
    yield CounterMetricFamily("batchinfer_batches", "Forward passes.", value=snapshot.num_batches)
    seconds = HistogramMetricFamily(
        "batchinfer_batch_seconds", "Seconds that a forward pass took on the device."
    )
    seconds.add_metric([], list(snapshot.batch_seconds), snapshot.batch_seconds_sum)
    yield seconds
    stages = CounterMetricFamily(
        "batchinfer_stage_seconds",
        "Seconds of the devices: computing, or waiting by what was missing.",
        labels=["stage"],
    )
    for stage in STAGES:
        stages.add_metric([stage], snapshot.stage_seconds.get(stage, 0.0))
    yield stages


def _gpus(readings: tuple[Reading, ...]) -> Iterator[Metric]:
    """Yield what NVML tells of each GPU that the run uses; what one cannot tell is left out."""
    if not readings:
        return
    gauges: list[tuple[str, str, Callable[[Reading], float | None]]] = [
        ("utilization_ratio", "Share of time with a kernel running.", lambda r: r.sample.utilization_ratio),
        ("memory_used_bytes", "Device memory in use, by anyone.", lambda r: r.sample.memory_used_bytes),
        ("memory_total_bytes", "Device memory.", lambda r: r.gpu.memory_total_bytes),
        ("temperature_celsius", "Temperature.", lambda r: r.sample.temperature_celsius),
        ("power_watts", "Power draw.", lambda r: r.sample.power_watts),
    ]
    for name, text, value_of in gauges:
        yield _per_gpu(GaugeMetricFamily(f"batchinfer_gpu_{name}", text, labels=["gpu"]), readings, value_of)
    energy = CounterMetricFamily(
        "batchinfer_gpu_energy_joules", "Energy since the driver was loaded.", labels=["gpu"]
    )
    yield _per_gpu(energy, readings, lambda reading: reading.sample.energy_joules)


def _per_gpu(
    family: GaugeMetricFamily | CounterMetricFamily,
    readings: tuple[Reading, ...],
    value_of: Callable[[Reading], float | None],
) -> Metric:
    for reading in readings:
        value = value_of(reading)
        if value is not None:
            family.add_metric([str(reading.gpu.index)], value)
    return family
