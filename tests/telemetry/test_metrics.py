"""The metrics of a run: their names, labels and values."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from batchinfer.config.limits import LimitsOptions
from batchinfer.data import ErrorCode
from batchinfer.events import StagesTimed
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.last_run import LastRun
from batchinfer.telemetry.metrics import RunMetrics, registry_of

FROZEN = {
    "batchinfer_rows": ("counter", {"outcome"}),
    "batchinfer_rows_planned": ("gauge", set()),
    "batchinfer_units": ("gauge", {"state"}),
    "batchinfer_errors": ("counter", {"code"}),
    "batchinfer_retries": ("counter", {"reason"}),
    "batchinfer_samples_per_second": ("gauge", set()),
    "batchinfer_tokens_per_second": ("gauge", set()),
    "batchinfer_running": ("gauge", set()),
    "batchinfer_start_timestamp_seconds": ("gauge", set()),
    "batchinfer_last_progress_timestamp_seconds": ("gauge", set()),
    "batchinfer_deadline_timestamp_seconds": ("gauge", set()),
    "batchinfer_eta_seconds": ("gauge", set()),
    "batchinfer_cost": ("counter", set()),
    "batchinfer_batches": ("counter", set()),
    "batchinfer_batch_splits": ("counter", set()),
    "batchinfer_batch_rows": ("histogram", {"le"}),
    "batchinfer_tokens": ("counter", {"kind"}),
    "batchinfer_workers": ("gauge", {"state"}),
    "batchinfer_worker_restarts": ("counter", set()),
    "batchinfer_device_idle_ratio": ("gauge", set()),
    "batchinfer_stage_seconds": ("counter", {"stage"}),
    "batchinfer_batch_seconds": ("histogram", {"le"}),
    "batchinfer_queue_bytes": ("gauge", {"queue"}),
    "batchinfer_gpu_utilization_ratio": ("gauge", {"gpu"}),
    "batchinfer_gpu_memory_used_bytes": ("gauge", {"gpu"}),
    "batchinfer_gpu_memory_total_bytes": ("gauge", {"gpu"}),
    "batchinfer_gpu_temperature_celsius": ("gauge", {"gpu"}),
    "batchinfer_gpu_power_watts": ("gauge", {"gpu"}),
    "batchinfer_gpu_energy_joules": ("counter", {"gpu"}),
    "batchinfer_gpu_clock_hertz": ("gauge", {"gpu", "clock"}),
    "batchinfer_gpu_pcie_bytes_per_second": ("gauge", {"gpu", "direction"}),
    "batchinfer_gpu_clock_throttled": ("gauge", {"gpu", "reason"}),
    "batchinfer_gpu_ecc_errors": ("counter", {"gpu"}),
    "batchinfer_gpu_xid_errors": ("counter", {"gpu"}),
    "batchinfer_build_info": ("gauge", {"version", "python"}),
    "batchinfer_last_success_timestamp_seconds": ("gauge", set()),
    "batchinfer_last_run_timestamp_seconds": ("gauge", set()),
    "batchinfer_last_run_duration_seconds": ("gauge", set()),
    "batchinfer_last_run_exit_code": ("gauge", set()),
    "batchinfer_last_run_rows": ("gauge", {"outcome"}),
}
COMPAT = {
    "inference_requests_total": 99,
    "inference_latency_seconds_count": 10,
    "inference_errors_total": 2,
    "inference_batch_size": 40,
    "samples_per_second": pytest.approx(40),
    "tokens_per_second": pytest.approx(400),
}


def two_gpus(run: Any) -> Devices:
    gpus = tuple(
        Gpu(index=index, uuid=f"GPU-{index}", name="NVIDIA L4", memory_total_bytes=24) for index in (0, 1)
    )
    samples = {
        "GPU-0": GpuSample(
            utilization_ratio=0.5,
            memory_used_bytes=12,
            temperature_celsius=60.0,
            power_watts=70.0,
            energy_joules=1000.0,
            sm_clock_hertz=2e9,
            throttled_by=(),
            ecc_errors=0,
            pcie_send_bytes_per_second=1e6,
            num_xids=0,
        ),
        "GPU-1": GpuSample(),
    }
    return Devices(gpus=lambda: gpus, sample=lambda gpu: samples[gpu.uuid], clock=run.clock)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def at(run: Any) -> Callable[[], float]:
    return lambda: 1.79e9 + float(run.clock.now)


def a_run(run: Any, failed_row: Callable[..., Any], *, compat: bool = False) -> CollectorRegistry:
    devices = two_gpus(run)
    limits = LimitsOptions(deadline=3600.0)
    metrics = RunMetrics(run.tally, devices, limits=limits, compat_names=compat, wall_clock=at(run))
    last_run = LastRun(run.tally, wall_clock=at(run))
    run.hear += [metrics.on_event, last_run.on_event]
    run.start(
        rows=1000, reused=200, units=10, workers=2, devices=("cuda:0", "cuda:1"), price_per_device_hour=3.6
    )
    run.ready(0, "cuda:0")
    run.ready(1, "cuda:1")
    for _ in range(10):
        run.batch(40, after=1, seconds=0.04)
    for worker in (0, 1):
        queues = {"read": 100, "device": 7, "another": 1}
        run.say(StagesTimed(worker=worker, seconds={}, peak_bytes=1, queue_bytes=queues))
    run.commit(97, errors=(failed_row(1), failed_row(2, ErrorCode.MODEL)), filtered=1)
    return registry_of(metrics, last_run)


def test_the_names_are_frozen(run: Any, failed_row: Callable[..., Any]) -> None:
    """Every metric has the name, type and labels that dashboards know."""
    registry = a_run(run, failed_row)
    run.finish()
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    found = {
        family.name: (family.type, {label for sample in family.samples for label in sample.labels})
        for family in families
    }
    assert found == FROZEN


def test_every_metric_is_documented() -> None:
    """The table of docs/observing.md has every name and its labels, and no others."""
    text = (Path(__file__).parents[2] / "docs" / "observing.md").read_text()
    rows = re.findall(r"^\| `(batchinfer_\w+)` \| (.*?) \|", text, re.MULTILINE)
    found = {name.removesuffix("_total"): set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert found == {name: labels for name, (_, labels) in FROZEN.items()}
    assert [name for name in COMPAT if f"`{name.removesuffix('_count')}`" not in text] == []


def test_the_values(run: Any, failed_row: Callable[..., Any]) -> None:
    """Rows by outcome, units by state, speeds, batches and errors are what the run has done."""
    registry = a_run(run, failed_row)
    assert value(registry, "batchinfer_rows_total", outcome="ok") == 97
    assert value(registry, "batchinfer_rows_total", outcome="error") == 2
    assert value(registry, "batchinfer_rows_total", outcome="filtered") == 1
    states = ("reused", "committed", "pending")
    assert [value(registry, "batchinfer_units", state=state) for state in states] == [2, 1, 7]
    assert value(registry, "batchinfer_samples_per_second") == pytest.approx(40)
    assert value(registry, "batchinfer_tokens_per_second") == pytest.approx(400)
    assert value(registry, "batchinfer_eta_seconds") == pytest.approx(10, rel=0.02)
    assert value(registry, "batchinfer_batches_total") == 10
    assert value(registry, "batchinfer_batch_seconds_bucket", le="0.05") == 10
    assert value(registry, "batchinfer_batch_seconds_bucket", le="0.025") == 0
    assert value(registry, "batchinfer_batch_seconds_count") == 10
    assert value(registry, "batchinfer_batch_seconds_sum") == pytest.approx(0.4)
    assert value(registry, "batchinfer_batch_rows_bucket", le="64.0") == 10
    assert value(registry, "batchinfer_batch_rows_bucket", le="16.0") == 0
    assert value(registry, "batchinfer_batch_rows_sum") == 400
    assert value(registry, "batchinfer_tokens_total", kind="real") == 4000
    assert value(registry, "batchinfer_tokens_total", kind="padding") == 2400
    assert value(registry, "batchinfer_queue_bytes", queue="read") == 200
    assert value(registry, "batchinfer_queue_bytes", queue="encode") == 0
    assert value(registry, "batchinfer_rows_planned") == 800
    assert value(registry, "batchinfer_workers", state="running") == 2
    assert value(registry, "batchinfer_device_idle_ratio") == pytest.approx(1 - 0.04 / 2, abs=0.01)
    assert value(registry, "batchinfer_cost_total") == pytest.approx(3.6 * 2 * 10 / 3600)
    assert value(registry, "batchinfer_running") == 1
    assert value(registry, "batchinfer_start_timestamp_seconds") == 1.79e9
    assert value(registry, "batchinfer_last_progress_timestamp_seconds") == 1.79e9 + 10
    assert value(registry, "batchinfer_deadline_timestamp_seconds") == 1.79e9 + 3600
    assert value(registry, "batchinfer_errors_total", code="model") == 1
    assert value(registry, "batchinfer_errors_total", code="timeout") == 0


def test_the_common_names(run: Any, failed_row: Callable[..., Any]) -> None:
    """`compat_names` adds eight names, exactly, with the same figures; without it there is none."""
    plain = {family.name for family in a_run(run, failed_row).collect()}
    registry = a_run(run, failed_row, compat=True)
    added = {family.name for family in registry.collect()} - plain
    assert added == {
        "inference_requests",
        "inference_latency_seconds",
        "inference_errors",
        "gpu_utilization_percent",
        "gpu_memory_used_bytes",
        "inference_batch_size",
        "tokens_per_second",
        "samples_per_second",
    }
    assert {name: value(registry, name) for name in COMPAT} == COMPAT
    assert value(registry, "gpu_utilization_percent", gpu="0") == 50
    assert value(registry, "gpu_memory_used_bytes", gpu="0") == 12


def test_gpus_are_measured_as_far_as_they_tell(run: Any, failed_row: Callable[..., Any]) -> None:
    """A GPU that does not tell something has no series for it."""
    registry = a_run(run, failed_row)
    assert value(registry, "batchinfer_gpu_utilization_ratio", gpu="0") == 0.5
    assert value(registry, "batchinfer_gpu_energy_joules_total", gpu="0") == 1000
    assert value(registry, "batchinfer_gpu_memory_total_bytes", gpu="1") == 24
    assert value(registry, "batchinfer_gpu_utilization_ratio", gpu="1") is None


def test_a_run_on_the_cpu_asks_no_gpu(run: Any) -> None:
    """Without a worker on a GPU, NVML is left alone and there is no series of one."""

    def fail() -> tuple[Gpu, ...]:
        raise AssertionError

    registry = registry_of(RunMetrics(run.tally, Devices(gpus=fail)))
    run.start()
    run.ready(0, "cpu")
    assert b"batchinfer_gpu" not in generate_latest(registry)


def test_gpus_are_asked_at_most_once_a_second(run: Any) -> None:
    """Displays and pushes share their readings."""
    asked: list[Gpu] = []

    def sample(gpu: Gpu) -> GpuSample:
        asked.append(gpu)
        return GpuSample()

    gpus = (Gpu(index=0, uuid="GPU-0", name="x", memory_total_bytes=None),)
    devices = Devices(gpus=lambda: gpus, sample=sample, clock=run.clock)
    run.start()
    run.ready(0, "cuda:0")
    for _ in range(10):
        devices.readings(run.tally.snapshot())
        run.clock.now += 0.25
    assert len(asked) == 3


def test_the_end_of_a_good_run(run: Any, failed_row: Callable[..., Any]) -> None:
    """The last speeds are those of the whole run, nothing is left to do, and the success has its time."""
    registry = a_run(run, failed_row)
    run.clock.now = 20.0
    run.commit(700, worker=1)
    run.finish()
    assert value(registry, "batchinfer_samples_per_second") == pytest.approx(20)
    assert value(registry, "batchinfer_tokens_per_second") == pytest.approx(200)
    assert value(registry, "batchinfer_eta_seconds") == 0
    assert value(registry, "batchinfer_running") == 0
    assert value(registry, "batchinfer_last_success_timestamp_seconds") == 1.79e9 + 20
    assert value(registry, "batchinfer_last_run_exit_code") == 0
    assert value(registry, "batchinfer_last_run_duration_seconds") == 20
    assert value(registry, "batchinfer_last_run_rows", outcome="ok") == 797


def test_the_end_of_a_bad_run(run: Any, failed_row: Callable[..., Any]) -> None:
    """A run that stopped has no time left to tell, and no success but its exit code and its own rows."""
    registry = a_run(run, failed_row)
    run.finish(exit_code=75)
    assert math.isnan(value(registry, "batchinfer_eta_seconds") or 0)
    assert value(registry, "batchinfer_last_success_timestamp_seconds") is None
    assert value(registry, "batchinfer_last_run_exit_code") == 75
    assert value(registry, "batchinfer_last_run_rows", outcome="ok") == 97


def test_before_the_start_there_are_zeros(run: Any, no_gpus: Devices) -> None:
    """Collecting early is no error, and an unknown ETA is no number."""
    registry = registry_of(RunMetrics(run.tally, no_gpus))
    assert value(registry, "batchinfer_rows_total", outcome="ok") == 0
    run.start()
    assert math.isnan(value(registry, "batchinfer_eta_seconds") or 0)


def test_the_number_of_series_is_bounded(run: Any, failed_row: Callable[..., Any], no_gpus: Devices) -> None:
    """No file, row or message is a label: a big run has as many series as a small one."""
    registry = registry_of(RunMetrics(run.tally, no_gpus))
    run.start(rows=10**6, units=1000)
    run.ready()
    before = len(generate_latest(registry).splitlines())
    for unit in range(1000):
        run.commit(9, errors=(failed_row(unit, ErrorCode.USER, f"why {unit}"),), unit=unit)
    assert len(generate_latest(registry).splitlines()) == before


def test_promtool_finds_nothing_to_say(
    run: Any, failed_row: Callable[..., Any], require: Callable[[str], str]
) -> None:
    """The metrics keep the conventions of Prometheus, as its own linter knows them."""
    require("promtool")
    registry = a_run(run, failed_row)
    run.finish()
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
