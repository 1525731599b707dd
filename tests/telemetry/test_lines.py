"""Progress lines for logs and pipes, as text and as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.events import RunFailed, SettingsChosen, StagesTimed, Warned, WorkerExited, WorkerSaid
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.lines import LineProgress

NOON = 1_790_000_000.25


class Log:
    """A run with its lines."""

    def __init__(self, run: Any, devices: Devices, **more: Any) -> None:
        self.file = io.StringIO()
        self.lines_of = LineProgress(
            run.tally,
            stream=self.file,
            devices=devices,
            job="embed",
            clock=run.clock,
            wall_clock=lambda: NOON,
            **{"interval_s": 30.0, **more},
        )
        run.hear.append(self.lines_of.on_event)

    def lines(self) -> list[str]:
        """Return what was written since the last time."""
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        return text.splitlines()

    def tick(self) -> list[str]:
        """Let it look at the clock once, and return what it wrote."""
        self.lines_of.tick(False)
        return self.lines()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the thread from ticking: the test does."""
    monkeypatch.setattr("batchinfer.telemetry.ticker.Ticker.start", lambda _: None)


@pytest.mark.usefixtures("quiet")
def test_a_line_per_interval(run: Any, no_gpus: Devices) -> None:
    """The first line at once, then one every thirty seconds, however often the clock is looked at."""
    log = Log(run, no_gpus)
    run.start(rows=1000, reused=100, units=10)
    run.ready()
    first, second = log.tick()
    assert first == (
        "t=00:00:00 event=run_started job=embed run=7f3a91c2 model=minilm/model.onnx output=/data/out "
        "rows=1000 reused=100 units=10 workers=1"
    )
    assert second == "t=00:00:00 event=worker_ready worker=0 device=cpu load_s=1.5 pid=42"
    seen = []
    for _ in range(65):
        run.batch(10, after=1, seconds=0.83)
        seen += log.tick()
    assert [line.split()[0] for line in seen] == ["t=00:00:30", "t=00:01:00"]


@pytest.mark.usefixtures("quiet")
def test_what_was_settled_on_is_one_line(run: Any, no_gpus: Devices) -> None:
    """Each value that the job left open, with the reason for it."""
    log = Log(run, no_gpus)
    run.start(rows=1000, units=10)
    run.say(SettingsChosen(settings={"batching.size": "64 (tuned 2026-12-01)", "device": "cpu"}))
    assert log.tick()[1:] == ['t=00:00:00 event=settings batching.size="64 (tuned 2026-12-01)" device=cpu']


@pytest.mark.usefixtures("quiet")
def test_a_line_of_progress_says_it_all(run: Any, failed_row: Callable[..., Any]) -> None:
    """Rows, share, rate, ETA, outcomes, units, workers, the GPU and the last commit, as key=value."""
    gpu = Gpu(index=0, uuid="GPU-0", name="NVIDIA L4", memory_total_bytes=None)
    devices = Devices(
        gpus=lambda: (gpu,), sample=lambda _: GpuSample(utilization_ratio=0.83), clock=run.clock
    )
    log = Log(run, devices)
    run.start(rows=1000, reused=100, units=10, devices=("cuda:0",), price_per_device_hour=2.0)
    run.ready(0, "cuda:0")
    for second in range(1, 33):
        run.batch(10, after=1, seconds=0.5, split=second == 7)
        stages = {"compute": 0.5 * second, "read": 0.41 * second}
        run.say(StagesTimed(worker=0, seconds=stages, peak_bytes=2**30))
    run.commit(198, errors=(failed_row(1), failed_row(2)))
    log.lines()
    (line,) = [line for line in log.tick() if "rows=" in line and "event" not in line]
    assert line == (
        "t=00:00:32 rows=420/1000 pct=42.0 rate=10/s eta=58s eta_range=56..60s ok=198 err=2 units=2/10 workers=1/1 "
        "busy=50 waits=read:41 gpu_util=83 splits=1 cost=0.018 ckpt=00:00:32"
    )


def test_the_last_line_and_the_summary(run: Any, no_gpus: Devices) -> None:
    """A run of a second has a first line, a last line, an end and the summary."""
    log = Log(run, no_gpus)
    run.start(rows=100, units=1)
    run.ready()
    run.clock.now = 1.0
    run.commit(100)
    run.finish(rows_ok=100, rows_error=0, rows_filtered=0)
    log.lines_of.close()
    seen = log.lines()
    assert seen[0].startswith("t=00:00:00 event=run_started")
    assert (
        seen[2]
        == "t=00:00:01 rows=100/100 pct=100.0 rate=100/s eta=0s ok=100 err=0 units=1/1 workers=0/1 ckpt=00:00:01"
    )
    assert seen[3] == (
        "t=00:00:01 event=run_finished exit_code=0 complete=true seconds=1 rows_total=100 "
        "rows_committed=100 rows_reused=0 rows_ok=100 rows_error=0 rows_filtered=0 rate=100/s"
    )
    assert seen[4].startswith("done   embed   run 7f3a91c2")
    assert seen[-1] == "next      batchinfer verify /data/out"


@pytest.mark.usefixtures("quiet")
def test_words_of_workers_and_warnings_are_lines(run: Any, no_gpus: Devices) -> None:
    """Foreign text stays on its line, in quotes, without control characters."""
    log = Log(run, no_gpus)
    run.start()
    log.tick()
    run.say(WorkerSaid(worker=3, line='\x1b[31mhe said "x=1"\x07'))
    run.say(Warned(code="oom", message="batch was split"))
    run.say(WorkerExited(worker=3, code=-9, restarts=True))
    assert log.tick() == [
        't=00:00:00 event=worker_said worker=3 line="he said \\"x=1\\"\\\\x07"',
        't=00:00:00 warning=oom message="batch was split"',
        "t=00:00:00 event=worker_exited worker=3 code=-9 restarts=true",
    ]


@pytest.mark.usefixtures("quiet")
def test_a_warning_of_several_lines_is_one_line(run: Any, no_gpus: Devices) -> None:
    """A message's line breaks become spaces, and are not spelled out."""
    log = Log(run, no_gpus)
    run.start()
    log.tick()
    run.say(Warned(code="late", message="float64 does not fit\n  → cast it"))
    assert log.tick() == ['t=00:00:00 warning=late message="float64 does not fit → cast it"']


def test_json_lines_have_stable_names(run: Any, no_gpus: Devices, failed_row: Callable[..., Any]) -> None:
    """Every line is an object with time, level, event, job and run; the names are frozen here."""
    log = Log(run, no_gpus, log_format="json", interval_s=1.0, units=True)
    run.start(rows=100, units=1)
    run.ready()
    run.say(WorkerSaid(worker=0, line="hello"))
    run.say(Warned(code="oom", message="split"))
    run.say(WorkerExited(worker=0, code=-11, restarts=True))
    run.clock.now = 2.0
    run.commit(99, errors=(failed_row(7),))
    run.say(RunFailed(kind="errors", message="too many", hint="none"))
    run.finish(exit_code=3)
    log.lines_of.close()
    records = [json.loads(line) for line in log.lines()]
    assert {(record["timestamp"], record["job"], record["run"]) for record in records} == {
        ("2026-09-21T14:13:20.250Z", "embed", "7f3a91c2")
    }
    assert {record["event"]: (record["level"], set(record) - HEAD) for record in records} == {
        "run_started": (
            "info",
            {
                "model",
                "output",
                "rows_total",
                "rows_reused",
                "share",
                "units_total",
                "units_reused",
                "workers",
                "devices",
            },
        ),
        "worker_ready": ("info", {"worker", "device", "load_s", "pid"}),
        "worker_said": ("info", {"worker", "line"}),
        "warning": ("warning", {"code", "message"}),
        "worker_exited": ("warning", {"worker", "code", "restarts"}),
        "unit_committed": (
            "info",
            {
                "unit",
                "worker",
                "device",
                "seconds",
                "rows_read",
                "rows_ok",
                "rows_error",
                "rows_filtered",
                "errors",
                "num_bytes",
                "won",
            },
        ),
        "error": ("error", {"kind", "message", "where", "hint"}),
        "progress": (
            "info",
            {
                "eta_least_s",
                "eta_most_s",
                "errors_allowed",
                "splits",
                "restarts",
                "cost",
                "energy_joules",
                "workers",
                "gpus",
                "rows_settled",
                "rows_total",
                "rows_reused",
                "rows_of_others",
                "rows_ok",
                "rows_error",
                "rows_filtered",
                "rows_per_second",
                "samples_per_second",
                "tokens_per_second",
                "eta_s",
                "units_committed",
                "units_total",
                "workers_running",
                "busy_ratio",
                "gpu_utilization_ratio",
                "last_commit_s",
            },
        ),
        "run_finished": (
            "error",
            {
                "exit_code",
                "complete",
                "seconds",
                "rows_total",
                "rows_committed",
                "rows_reused",
                "rows_of_others",
                "rows_ok",
                "rows_error",
                "rows_filtered",
                "rows_per_second",
                "steady_rows_per_second",
                "model_rows_per_second",
                "padding_ratio",
                "advice",
                "start_s",
                "stage_seconds",
                "peak_bytes",
                "splits",
                "restarts",
                "errors_allowed",
                "device_seconds",
                "cost",
                "energy_joules",
                "energy_kwh",
                "output",
                "errors",
                "retries",
                "error_samples",
            },
        ),
    }
    (unit,) = [record for record in records if record["event"] == "unit_committed"]
    assert (unit["unit"], unit["device"], unit["seconds"], unit["rows_ok"]) == (0, "cpu", 2.0, 99)
    (end,) = [record for record in records if record["event"] == "run_finished"]
    assert end["errors"] == {"decode": 1}
    assert end["error_samples"] == [
        {
            "source": "dt=1/part-0.parquet",
            "row": 7,
            "stage": "tokenize",
            "code": "decode",
            "message": "text is null",
        }
    ]


HEAD = {"timestamp", "level", "event", "job", "run"}


def test_a_run_that_never_began_has_an_end(run: Any, no_gpus: Devices) -> None:
    """Where planning failed, the log still says how it ended, and boasts of no rows."""
    log = Log(run, no_gpus, log_format="json")
    run.finish(exit_code=66)
    log.lines_of.close()
    (record,) = [json.loads(line) for line in log.lines()]
    assert (record["event"], record["level"], record["exit_code"], record["run"]) == (
        "run_finished",
        "error",
        66,
        "",
    )


@given(st.text())
def test_no_text_breaks_a_line(new_run: Callable[[], Any], text: str) -> None:
    """Whatever a worker prints: one line of JSON, or one line of text."""
    for log_format in ("json", "text"):
        run = new_run()
        log = Log(run, Devices(gpus=tuple), log_format=log_format)
        run.say(WorkerSaid(worker=0, line=text))
        lines = log.tick()
        assert len(lines) == 1
        if log_format == "json":
            assert json.loads(lines[0])["event"] == "worker_said"


@pytest.mark.usefixtures("quiet")
def test_a_reader_who_does_not_read_loses_the_oldest(run: Any, no_gpus: Devices) -> None:
    """Lines wait in bounded number; what is dropped is counted, and the run has not waited."""
    log = Log(run, no_gpus)
    for number in range(10_500):
        run.say(WorkerSaid(worker=0, line=f"line {number}"))
    seen = log.tick()
    assert len(seen) == 10_001
    assert seen[0] == "t=00:00:00 event=lines_dropped lines=500"
    assert 'line="line 500"' in seen[1]
    assert log.tick() == []


@pytest.mark.usefixtures("quiet")
def test_a_late_line_does_not_shift_the_beat(run: Any, no_gpus: Devices) -> None:
    """After a pause there is one line, not one for each that was missed, and then the old beat."""
    log = Log(run, no_gpus, interval_s=10.0)
    run.start()
    log.tick()
    times = []
    for now in (10.4, 19.9, 20.1, 57.0, 58.0, 60.2):
        run.clock.now = now
        times += [(now, line.split()[0]) for line in log.tick()]
    assert [now for now, _ in times] == [10.4, 20.1, 57.0, 60.2]
