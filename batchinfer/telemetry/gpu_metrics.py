"""What NVML tells of the GPUs that a run uses, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Reading

_Value = Callable[["Reading"], float | None]

_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    ("utilization_ratio", "Share of time with a kernel running.", lambda r: r.sample.utilization_ratio),
    ("memory_used_bytes", "Device memory in use, by anyone.", lambda r: r.sample.memory_used_bytes),
    ("memory_total_bytes", "Device memory.", lambda r: r.gpu.memory_total_bytes),
    ("temperature_celsius", "Temperature.", lambda r: r.sample.temperature_celsius),
    ("power_watts", "Power draw.", lambda r: r.sample.power_watts),
)


def gpu_metrics(readings: tuple[Reading, ...]) -> Iterator[Metric]:
    """Yield the metrics of some GPUs, nothing where there is none; what one cannot tell is left out."""
    if not readings:
        return
    for name, text, value_of in _GAUGES:
        yield per_gpu(GaugeMetricFamily(f"batchinfer_gpu_{name}", text, labels=["gpu"]), readings, value_of)
    energy = CounterMetricFamily(
        "batchinfer_gpu_energy_joules", "Energy since the driver was loaded.", labels=["gpu"]
    )
    yield per_gpu(energy, readings, lambda reading: reading.sample.energy_joules)


def per_gpu(
    family: GaugeMetricFamily | CounterMetricFamily, readings: tuple[Reading, ...], value_of: _Value
) -> Metric:
    """Give a family a value for each GPU that has one."""
    for reading in readings:
        value = value_of(reading)
        if value is not None:
            family.add_metric([str(reading.gpu.index)], value)
    return family
