"""Clocks, throttling, errors and traffic of GPUs as metrics."""

from __future__ import annotations

import dataclasses
from typing import Any

from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.metrics import RunMetrics

CARDS = tuple(Gpu(index=index, uuid=f"GPU-{index}", name="x", memory_total_bytes=None) for index in range(2))
TOLD = GpuSample(
    sm_clock_hertz=2e9,
    memory_clock_hertz=6e9,
    throttled_by=("heat",),
    ecc_errors=2,
    num_xids=1,
    pcie_send_bytes_per_second=10.0,
    pcie_receive_bytes_per_second=20.0,
)


def test_how_a_gpu_is_doing(run: Any) -> None:
    """Each figure has its metric in base units, every reason a series; who does not tell has none."""
    told = dataclasses.replace(TOLD, ecc_errors=1)
    devices = Devices(
        gpus=lambda: CARDS, sample=lambda gpu: GpuSample() if gpu.index else told, clock=run.clock
    )
    run.start(workers=2)
    run.ready(0, "cuda:0")
    run.ready(1, "cuda:1")
    devices.readings(run.tally.snapshot())
    told, run.clock.now = TOLD, 10.0
    found = {
        (sample.name.removeprefix("batchinfer_gpu_"), *sample.labels.values()): sample.value
        for metric in RunMetrics(run.tally, devices).collect()
        for sample in metric.samples
        if sample.name.startswith("batchinfer_gpu_")
    }
    assert found == {
        ("clock_hertz", "0", "sm"): 2e9,
        ("clock_hertz", "0", "memory"): 6e9,
        ("pcie_bytes_per_second", "0", "send"): 10,
        ("pcie_bytes_per_second", "0", "receive"): 20,
        ("clock_throttled", "0", "power_cap"): 0,
        ("clock_throttled", "0", "hardware"): 0,
        ("clock_throttled", "0", "sync_boost"): 0,
        ("clock_throttled", "0", "heat"): 1,
        ("clock_throttled", "0", "power_brake"): 0,
        ("ecc_errors_total", "0"): 1,
        ("xid_errors_total", "0"): 1,
    }
    devices.close()
