"""The lines of the live display, at any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.events import WorkerExited
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.devices import Reading
from batchinfer.telemetry.screen import frame
from batchinfer.telemetry.snapshot import Snapshot, WorkerState

L4 = Gpu(index=0, uuid="GPU-0", name="NVIDIA L4", memory_total_bytes=24 * 2**30)
SAMPLE = GpuSample(
    utilization_ratio=0.97, memory_used_bytes=18 * 2**30, temperature_celsius=64.0, power_watts=70.0
)


def lines(run: Any, width: int = 80, **more: Any) -> list[str]:
    return [line.plain.rstrip() for line in frame(run.tally.snapshot(), [], width=width, **more)]


def half_way(run: Any) -> None:
    run.start(rows=1000, reused=100, units=10)
    run.ready()
    for unit in range(4):
        run.batch(100, after=1, seconds=0.97)
        run.commit(100, unit=unit)


def test_a_run_at_eighty_columns(run: Any) -> None:
    """Job, rows, units, the worker and errors, each on its line, within 80 columns."""
    half_way(run)
    run.clock.now += 0.5
    assert lines(run) == [
        "embed   run 7f3a91c2   model minilm/model.onnx   10.0 % reused",
        "rows      ████████████░░░░░░░░░░░░░    50.0 %   500 / 1.00 k   100/s   ETA 5.0 s",
        "units     5 / 10 committed   last 0.5 s ago   padding 37.5 %   elapsed 4.5 s",
        "worker 0  cpu   busy  97 %   100/s",
        "errors    none",
    ]


def test_before_the_model_is_loaded_it_says_so(run: Any) -> None:
    """While workers load, there is no rate and no ETA, and a person sees what is awaited."""
    run.start()
    run.clock.now = 12.0
    seen = lines(run)
    assert seen[3] == "worker 0  starting: loading the model   12 s"
    assert seen[1].endswith("0/s   ETA --")


def test_errors_are_counted_by_code(run: Any, failed_row: Callable[..., Any]) -> None:
    """Failed rows are in sight at once, with their share and their reasons."""
    run.start()
    run.ready()
    run.commit(98, errors=(failed_row(1), failed_row(2)))
    assert lines(run)[-1] == "errors    2 (2.0 %)   decode 2"


def test_a_worker_that_died_is_shown(run: Any) -> None:
    """A restart is visible while it lasts, and counted after."""
    half_way(run)
    run.say(WorkerExited(worker=0, code=-9, restarts=True))
    assert lines(run)[3] == "worker 0  cpu   restarting"
    assert lines(run)[1].endswith("ETA --")
    run.ready()
    assert "died 1x" in lines(run)[3]


def test_gpus_tell_how_they_are(run: Any) -> None:
    """A worker on a GPU shows what NVML says of that GPU."""
    run.start()
    run.ready(0, "cuda:0")
    (line,) = [
        line.plain
        for line in frame(run.tally.snapshot(), [Reading(L4, SAMPLE)], width=120)
        if line.plain.startswith("worker 0")
    ]
    for part in ("cuda:0", "util  97 %", "18.0 / 24.0 GiB", "70 W", "64 °C", "NVIDIA L4"):
        assert part in line


def test_a_gpu_that_tells_nothing_is_a_worker_all_the_same(run: Any) -> None:
    """Figures that NVML does not have are left out."""
    run.start()
    run.ready(0, "cuda:0")
    reading = Reading(Gpu(index=0, uuid="", name="NVIDIA GB10", memory_total_bytes=None), GpuSample())
    line = frame(run.tally.snapshot(), [reading], width=120)[3].plain
    assert line == "worker 0  cuda:0   busy   0 %   0/s   NVIDIA GB10"


@pytest.mark.parametrize("num_workers", [1, 8, 9, 64])
def test_many_workers_do_not_fill_the_screen(num_workers: int) -> None:
    """Eight workers have a line each; the others are counted."""
    workers = tuple(WorkerState(index=index, device="cpu", state="running") for index in range(num_workers))
    seen = [line.plain for line in frame(Snapshot(started=True, workers=workers), [], width=80)]
    assert len(seen) == 4 + min(num_workers, 8) + (num_workers > 8)
    assert any(f"and {num_workers - 8} more workers" in line for line in seen) == (num_workers > 8)


def test_a_plain_terminal_gets_plain_letters(run: Any) -> None:
    """Where only ASCII can be shown, the bar is made of it."""
    half_way(run)
    assert lines(run, ascii_only=True)[1].startswith("rows      ############.............")


@given(
    width=st.integers(1, 250), rows=st.integers(0, 10**12), done=st.floats(0, 1), workers=st.integers(0, 12)
)
def test_no_line_is_wider_than_the_window(width: int, rows: int, done: float, workers: int) -> None:
    """At any width and any numbers, every line fits: a line that wraps would break the drawing."""
    settled = int(rows * done)
    snapshot = Snapshot(
        job="a-rather-long-name-of-a-job-日本",
        run="7f3a91c2",
        model="/models/with/a/long/path/model.onnx",
        started=True,
        rows_total=rows,
        rows_reused=settled // 2,
        rows_settled=settled,
        rows_error=settled // 3,
        rows_per_second=settled / 7,
        errors={"decode": settled // 3},
        eta_s=float(rows),
        workers=tuple(WorkerState(index=index, device="cuda:0", state="running") for index in range(workers)),
    )
    readings = [Reading(L4, SAMPLE)]
    assert all(line.cell_len <= width for line in frame(snapshot, readings, width=width))


def test_a_narrow_window_keeps_what_matters(run: Any) -> None:
    """In 40 columns the bar and the share are still there."""
    half_way(run)
    assert "50.0 %" in lines(run, width=40)[1]
    assert "█" in lines(run, width=40)[1]
