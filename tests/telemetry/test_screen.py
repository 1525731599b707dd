"""The lines of the live display, at any width."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.events import StagesTimed, WorkerExited
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
        "rows      ██████████████████░░░░░░░░░░░░░░░░░░░    50.0 %   500 / 1.00 k   100/s",
        "time      elapsed 4.5 s   ETA 5.0 s (4.4 s to 5.8 s)",
        "units     5 / 10 committed   last 0.5 s ago   1.00 k tokens/s   padding 37.5 %",
        "worker 0  cpu   busy  97 %   100/s   batch 100",
        "errors    none",
    ]


def test_before_the_model_is_loaded_it_says_so(run: Any) -> None:
    """While workers load, there is no rate and no ETA, and a person sees what is awaited."""
    run.start()
    run.clock.now = 12.0
    seen = lines(run)
    assert seen[4] == "worker 0  starting: loading the model   12 s"
    assert seen[2] == "time      elapsed 12 s   ETA --"


def test_errors_are_counted_by_code(run: Any, failed_row: Callable[..., Any]) -> None:
    """Failed rows are in sight at once, with their share and their reasons."""
    run.start()
    run.ready()
    run.commit(98, errors=(failed_row(1), failed_row(2)))
    run.batch(7, after=1, split=True)
    assert lines(run)[-1] == "errors    2 (2.0 %) of 10 allowed   decode 2   splits 1"


def test_a_worker_that_died_is_shown(run: Any) -> None:
    """A restart is visible while it lasts, and counted after."""
    half_way(run)
    run.say(WorkerExited(worker=0, code=-9, restarts=True))
    assert lines(run)[4] == "worker 0  cpu   restarting   died 1x"
    assert lines(run)[2].endswith("ETA --")
    run.ready()
    assert "died 1x" in lines(run)[4]
    assert lines(run)[-1] == "errors    none   restarts 1"


def test_gpus_tell_how_they_are(run: Any) -> None:
    """Each GPU that a worker uses has a line of what NVML says of it."""
    run.start()
    run.ready(0, "cuda:0")
    worker, gpu = (line.plain for line in frame(run.tally.snapshot(), [Reading(L4, SAMPLE)], width=120)[4:6])
    assert worker.startswith("worker 0  cuda:0   busy   0 %")
    assert gpu == "gpu 0     util  97 %   18.0 / 24.0 GiB   70 W   64 °C   NVIDIA L4"


def test_a_gpu_in_trouble_says_so(run: Any) -> None:
    """Lowered clocks, memory errors and Xids are there in a narrow window too; clocks and traffic in a wide one."""
    run.start()
    run.ready(0, "cuda:0")
    sample = dataclasses.replace(
        SAMPLE,
        throttled_by=("heat", "power_cap"),
        ecc_errors=2,
        num_xids=3,
        last_xid=79,
        sm_clock_hertz=1.2e9,
        pcie_send_bytes_per_second=1e9,
        pcie_receive_bytes_per_second=2e9,
    )
    narrow, wide = (frame(run.tally.snapshot(), [Reading(L4, sample)], width=w)[5].plain for w in (79, 159))
    assert narrow == "gpu 0     util  97 %   18.0 / 24.0 GiB   slowed: heat, power cap   ECC 2"
    assert wide.endswith("Xid 79 (3x)   1200 MHz   PCIe 3.00 GB/s   NVIDIA L4")


def test_a_gpu_that_tells_nothing_is_a_worker_all_the_same(run: Any) -> None:
    """Figures that NVML does not have are left out."""
    run.start()
    run.ready(0, "cuda:0")
    reading = Reading(Gpu(index=0, uuid="", name="NVIDIA GB10", memory_total_bytes=None), GpuSample())
    worker, gpu = (line.plain for line in frame(run.tally.snapshot(), [reading], width=120)[4:6])
    assert worker == "worker 0  cuda:0   busy   0 %   0/s"
    assert gpu == "gpu 0     NVIDIA GB10"


def test_what_a_device_waits_for(run: Any) -> None:
    """The longest waits of the last seconds are shown, as far as there is room, with the memory of the worker."""
    run.start()
    run.ready()
    for second in range(1, 11):
        run.clock.now = second
        stages = {"compute": 0.5 * second, "read": 0.41 * second, "write": 0.09 * second, "pack": 0.0}
        run.say(StagesTimed(worker=0, seconds=stages, peak_bytes=2**31))
    assert lines(run)[4] == "worker 0  cpu   busy   0 %   0/s   2.0 GiB   waits: read 41 %   write 9 %"
    assert lines(run, width=50)[4] == "worker 0  cpu   busy   0 %   waits: read 41 %"


def test_what_it_costs(run: Any) -> None:
    """With a price, the cost so far and its limit are shown; with a counter, the energy."""
    run.start(price_per_device_hour=3.6, max_cost=2.0, devices=("cuda:0", "cuda:1"))
    run.ready()
    run.clock.now = 500.0
    assert lines(run)[2] == "time      elapsed 8m 20s   ETA --   cost 1.00 of 2.00"
    snapshot = dataclasses.replace(run.tally.snapshot(), energy_joules=3.6e6)
    assert frame(snapshot, [], width=80)[2].plain.endswith("cost 1.00 of 2.00   1 kWh")


def many(num_workers: int) -> Snapshot:
    """Return a run with so many workers, one of them restarting."""
    return Snapshot(
        started=True,
        workers=tuple(
            WorkerState(
                index=index,
                device=f"cuda:{index}",
                state="running" if index != num_workers - 1 else "restarting",
                samples_per_second=100.0,
                busy_ratio=0.5 + index / 200,
            )
            for index in range(num_workers)
        ),
    )


@pytest.mark.parametrize("num_workers", [1, 8, 9, 64])
def test_many_workers_do_not_fill_the_screen(num_workers: int) -> None:
    """Eight workers have a line each; the others are folded into one."""
    seen = [line.plain for line in frame(many(num_workers), [], width=80)]
    assert len(seen) == 5 + min(num_workers, 8) + (num_workers > 8)
    if num_workers == 64:
        assert seen[-2] == "          and 56 more workers   5.50 k/s   busy 54 to 81 %   1 not running"


@given(num_workers=st.integers(1, 64), num_gpus=st.integers(0, 16), height=st.integers(8, 60))
def test_the_frame_fits_the_window(num_workers: int, num_gpus: int, height: int) -> None:
    """However many workers and GPUs there are, the line of errors is in the window, and no worker is lost."""
    cards = [dataclasses.replace(L4, index=index) for index in range(num_gpus)]
    readings = [Reading(card, SAMPLE) for card in cards]
    seen = [line.plain for line in frame(many(num_workers), readings, width=80, height=height)]
    assert len(seen) <= height
    assert seen[-1].startswith("errors")
    shown = sum(line.startswith("worker") for line in seen)
    folded = [int(line.split()[1]) for line in seen if "more workers" in line]
    assert shown + sum(folded) == num_workers
    assert not num_gpus or any("util  97 %" in line or "util 97 %" in line for line in seen)


def test_many_gpus_share_a_line_that_names_the_troubled() -> None:
    """Where there is no room for a line each, the range is shown, and which one is in trouble."""
    cards = [dataclasses.replace(L4, index=index) for index in range(8)]
    samples = [SAMPLE, *[dataclasses.replace(SAMPLE, utilization_ratio=0.4, throttled_by=("heat",))] * 7]
    readings = [Reading(card, sample) for card, sample in zip(cards, samples, strict=True)]
    seen = [line.plain for line in frame(many(8), readings, width=120, height=14)]
    assert seen[-2] == (
        "8 gpus    util 40 to 97 %   at most 18.0 / 24.0 GiB   560 W   at most 64 °C   gpu 1 slowed: heat, and 6 more"
    )


def test_a_plain_terminal_gets_plain_letters(run: Any) -> None:
    """Where only ASCII can be shown, the bar is made of it."""
    half_way(run)
    assert lines(run, ascii_only=True)[1].startswith("rows      ##################...................")


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
