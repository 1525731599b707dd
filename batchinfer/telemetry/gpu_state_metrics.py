"""Clocks, throttling, errors and traffic of the GPUs that a run uses, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from batchinfer.hardware import THROTTLES

if TYPE_CHECKING:
    from batchinfer.hardware import GpuSample
    from batchinfer.telemetry.devices import Reading

_Value = Callable[["GpuSample"], float | None]


def _throttled(reason: str, sample: GpuSample) -> float | None:
    return None if sample.throttled_by is None else float(reason in sample.throttled_by)


_GAUGES: tuple[tuple[str, str, str, tuple[tuple[str, _Value], ...]], ...] = (
    (
        "clock_hertz",
        "Clock.",
        "clock",
        (("sm", lambda sample: sample.sm_clock_hertz), ("memory", lambda sample: sample.memory_clock_hertz)),
    ),
    (
        "pcie_bytes_per_second",
        "What goes over PCIe, as the GPU sees it.",
        "direction",
        (
            ("send", lambda sample: sample.pcie_send_bytes_per_second),
            ("receive", lambda sample: sample.pcie_receive_bytes_per_second),
        ),
    ),
    (
        "clock_throttled",
        "1 where its clocks are lower than they could be, by why.",
        "reason",
        tuple((reason, partial(_throttled, reason)) for reason in THROTTLES),
    ),
)
_COUNTERS: tuple[tuple[str, str, _Value], ...] = (
    (
        "ecc_errors",
        "Memory errors that could not be corrected, since the run began.",
        lambda sample: sample.ecc_errors,
    ),
    (
        "xid_errors",
        "Errors that its driver reported (Xid), since the run began.",
        lambda sample: sample.num_xids,
    ),
)


def gpu_state_metrics(readings: tuple[Reading, ...]) -> Iterator[Metric]:
    """Yield the metrics of some GPUs, nothing where there is none; what one cannot tell is left out."""
    if not readings:
        return
    for name, text, label, values in _GAUGES:
        gauge = GaugeMetricFamily(f"batchinfer_gpu_{name}", text, labels=["gpu", label])
        for reading in readings:
            for word, value_of in values:
                value = value_of(reading.sample)
                if value is not None:
                    gauge.add_metric([str(reading.gpu.index), word], value)
        yield gauge
    for name, text, value_of in _COUNTERS:
        counter = CounterMetricFamily(f"batchinfer_gpu_{name}", text, labels=["gpu"])
        for reading in readings:
            value = value_of(reading.sample)
            if value is not None:
                counter.add_metric([str(reading.gpu.index)], value)
        yield counter
