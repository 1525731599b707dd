"""The screens in docs/observing.md are what the displays make of an invented run."""

from __future__ import annotations

from pathlib import Path

from batchinfer.data import ErrorCode, RowError
from batchinfer.events import RunFinished
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.devices import Reading
from batchinfer.telemetry.screen import frame
from batchinfer.telemetry.snapshot import Snapshot, WorkerState
from batchinfer.telemetry.summary import summary

DOCUMENT = (Path(__file__).parents[2] / "docs" / "observing.md").read_text()
STAGES = ("compute", "read", "decode", "pack", "transfer", "postprocess", "write", "commit", "launch")


def worker(index: int, *, busy: float, waits: dict[str, float], deaths: int = 0) -> WorkerState:
    """Return a worker on a GPU."""
    return WorkerState(
        index=index,
        device=f"cuda:{index}",
        state="running",
        samples_per_second=10_700 * busy,
        busy_ratio=busy,
        mean_busy_ratio=busy,
        batch_rows=512,
        waits=waits,
        peak_bytes=2**31,
        deaths=deaths,
    )


def reading(index: int, *, utilization: float, watts: float, throttled_by: tuple[str, ...] = ()) -> Reading:
    """Return what a GPU tells."""
    gpu = Gpu(index=index, uuid="", name="NVIDIA L4", memory_total_bytes=24 * 2**30)
    sample = GpuSample(
        utilization_ratio=utilization,
        memory_used_bytes=18 * 2**30,
        power_watts=watts,
        temperature_celsius=64 + index,
        sm_clock_hertz=2.04e9,
        throttled_by=throttled_by,
    )
    return Reading(gpu, sample)


RUN = {
    "job": "product-embeddings",
    "run": "7f3a91c2",
    "model": "models/minilm/model.onnx",
    "output": "s3://lake/embeddings/",
    "started": True,
    "rows_total": 12_000_000,
    "rows_reused": 7_300_000,
    "units_total": 184,
    "units_reused": 112,
    "rows_error": 37,
    "errors": {"decode": 31, "timeout": 6},
    "errors_allowed": 12_000,
    "num_splits": 2,
    "price_per_device_hour": 2.1,
    "max_cost": 2.0,
    "devices": ("cuda:0", "cuda:1"),
    "real_tokens": 97,
    "padded_tokens": 100,
}


def test_the_display() -> None:
    """The display in 80 columns is the one that is shown."""
    snapshot = Snapshot(
        **RUN,  # type: ignore[arg-type]
        elapsed_s=92.0,
        rows_settled=8_910_244,
        rows_ok=1_600_000,
        units_committed=25,
        last_commit_s=89.0,
        rows_per_second=17_500.0,
        eta_s=176.0,
        eta_range_s=(158.0, 201.0),
        workers=(
            worker(0, busy=0.97, waits={"decode": 0.02}),
            worker(1, busy=0.58, waits={"read": 0.38}, deaths=1),
        ),
    )
    readings = [
        reading(0, utilization=0.96, watts=71.0),
        reading(1, utilization=0.57, watts=52.0, throttled_by=("power_cap",)),
    ]
    shown = "\n".join(line.plain.rstrip() for line in frame(snapshot, readings, width=79))
    assert f"```\n{shown}\n```" in DOCUMENT, shown


def test_the_end_screen() -> None:
    """The lines of the end screen are the ones that are shown."""
    stages = dict(zip(STAGES, (77.5, 19.1, 1.2, 0.4, 0.3, 0.1, 0.9, 0.2, 0.3), strict=True))
    error = RowError(
        stage="tokenize",
        code=ErrorCode.DECODE,
        message="text is null",
        attempts=1,
        source="dt=2026-10-01/part-7.parquet",
        row=48_210,
    )
    snapshot = Snapshot(
        **RUN,  # type: ignore[arg-type]
        elapsed_s=287.0,
        rows_settled=12_000_000,
        rows_ok=4_699_963,
        units_committed=72,
        start_s=11.0,
        mean_rows_per_second=16_376.0,
        stage_seconds=stages,
        peak_bytes=2**32,
        energy_joules=33_800.0,
        error_samples=(error,),
        workers=(worker(0, busy=0.97, waits={}), worker(1, busy=0.58, waits={}, deaths=1)),
        finished=RunFinished(
            exit_code=0, seconds=287.0, complete=True, rows_ok=11_999_951, rows_error=49, rows_filtered=0
        ),
    )
    lines = [line.plain.rstrip() for line in summary(snapshot) if not line.plain.startswith("device")]
    for line in lines:
        assert f"\n{line}\n" in DOCUMENT, "\n".join(lines)
