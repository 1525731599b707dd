"""The same figures under names that dashboards made for other services know, without a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from batchinfer.telemetry.gpu_metrics import per_gpu

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Reading
    from batchinfer.telemetry.snapshot import Snapshot


def compat_metrics(
    snapshot: Snapshot, readings: tuple[Reading, ...], *, samples_per_second: float, tokens_per_second: float
) -> Iterator[Metric]:
    """Yield a run's figures under common names. A request is a row that was done, well or not."""
    done = snapshot.rows_ok + snapshot.rows_error
    yield CounterMetricFamily(
        "inference_requests", "Rows done by this run, failed ones included.", value=done
    )
    yield CounterMetricFamily("inference_errors", "Failed rows of this run.", value=snapshot.rows_error)
    latency = HistogramMetricFamily(
        "inference_latency_seconds", "Seconds that a forward pass took on the device."
    )
    latency.add_metric([], list(snapshot.batch_seconds), snapshot.batch_seconds_sum)
    yield latency
    mean = snapshot.num_samples / snapshot.num_batches if snapshot.num_batches else 0.0
    yield GaugeMetricFamily("inference_batch_size", "Rows of a forward pass, on average.", value=mean)
    yield GaugeMetricFamily(
        "samples_per_second", "Rows through the model per second.", value=samples_per_second
    )
    yield GaugeMetricFamily(
        "tokens_per_second", "Tokens per second, padding left out.", value=tokens_per_second
    )
    if readings:
        used = GaugeMetricFamily("gpu_utilization_percent", "Time with a kernel running.", labels=["gpu"])
        yield per_gpu(used, readings, _percent)
        memory = GaugeMetricFamily(
            "gpu_memory_used_bytes", "Device memory in use, by anyone.", labels=["gpu"]
        )
        yield per_gpu(memory, readings, lambda reading: reading.sample.memory_used_bytes)


def _percent(reading: Reading) -> float | None:
    ratio = reading.sample.utilization_ratio
    return None if ratio is None else ratio * 100
