"""The end screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from batchinfer.data import ErrorCode
from batchinfer.events import WorkerExited
from batchinfer.telemetry.summary import summary


def lines(run: Any) -> list[str]:
    return [line.plain for line in summary(run.tally.snapshot())]


def test_a_clean_run(run: Any) -> None:
    """Every row is accounted for, and the next command is there to be copied."""
    run.start(rows=1000, reused=400)
    run.ready()
    run.batch(590, after=10, seconds=9.0)
    run.commit(590, filtered=10)
    run.finish(rows_ok=985, rows_error=0, rows_filtered=15)
    assert lines(run) == [
        "done   embed   run 7f3a91c2   10 s",
        "rows      1,000 in = 985 ok + 0 error + 15 filtered",
        "reused    400 rows, committed by earlier runs",
        "speed     60 rows/s   1 worker   busy 90.0 %   padding 37.5 %",
        "output    /data/out",
        "next      batchinfer verify /data/out",
    ]


def test_failed_rows_are_shown_with_their_place(run: Any, failed_row: Callable[..., Any]) -> None:
    """Counts by code, then a few rows: file, row, code, stage and message."""
    run.start(rows=100, errors_allowed=5)
    run.ready()
    errors = (failed_row(17), failed_row(1234, ErrorCode.MODEL, "gave \x1b[31mNaN"))
    run.clock.now = 2.0
    run.commit(98, errors=errors)
    run.finish(rows_ok=98, rows_error=2, rows_filtered=0)
    seen = lines(run)
    assert seen[0].startswith("done, with errors within the budget")
    assert seen[-5:] == [
        "errors    2 (2.0 %) of 5 allowed   decode 1 · model 1",
        "          dt=1/part-0.parquet row 17   decode in tokenize: text is null",
        "          dt=1/part-0.parquet row 1,234   model in tokenize: gave NaN",
        "next      batchinfer errors /data/out",
        "          batchinfer verify /data/out",
    ]


def test_nothing_left_to_do(run: Any) -> None:
    """The second run of a job says so in one sentence."""
    run.start(rows=12_000, reused=12_000)
    run.finish(rows_ok=12_000, rows_error=0, rows_filtered=0)
    assert lines(run) == ["nothing left to do   embed   all 12,000 rows are committed"]


def test_nothing_left_to_do_does_not_hide_failed_rows(run: Any) -> None:
    """Rows that failed in an earlier run are still told of."""
    run.start(rows=12_000, reused=12_000)
    run.finish(rows_ok=11_951, rows_error=49, rows_filtered=0)
    assert lines(run) == ["nothing left to do   embed   all 12,000 rows are committed (49 failed)"]


def test_an_input_without_rows(run: Any) -> None:
    """Shards that hold no rows are not called committed."""
    run.start(rows=0, units=0)
    run.finish(rows_ok=0, rows_error=0, rows_filtered=0)
    assert lines(run) == ["nothing left to do   embed   the input has no rows"]


def test_a_run_that_came_to_nothing(run: Any) -> None:
    """Where not one unit was committed there are no zeros to read: the error says the rest."""
    run.start(rows=1000)
    run.clock.now = 1.0
    run.finish(exit_code=78)
    assert lines(run) == [
        "stopped (exit code 78)   embed   run 7f3a91c2   1.0 s",
        "rows      0 of 1,000 committed",
    ]


def test_errors_of_a_resumed_run_are_its_own(run: Any, failed_row: Callable[..., Any]) -> None:
    """Beside the count of the whole output, that of this run says that it is one."""
    run.start(rows=100, reused=50, errors_allowed=5)
    run.ready()
    run.clock.now = 2.0
    run.commit(49, errors=(failed_row(60),))
    run.finish(rows_ok=97, rows_error=3, rows_filtered=0)
    seen = lines(run)
    assert seen[1] == "rows      100 in = 97 ok + 3 error + 0 filtered"
    assert [line for line in seen if line.startswith("errors")] == [
        "errors    1 (2.0 %) in this run, 3 in all of 5 allowed   decode 1"
    ]


def test_a_run_that_was_stopped(run: Any) -> None:
    """What is committed is counted, whole and by this run; the way on is the error's to tell."""
    run.start(rows=1000, reused=400)
    run.ready()
    run.clock.now = 5.0
    run.commit(95, filtered=5)
    run.batch(70, after=1)
    run.finish(exit_code=75)
    seen = lines(run)
    assert seen[:4] == [
        "stopped (exit code 75)   embed   run 7f3a91c2   6.0 s",
        "rows      500 of 1,000 committed",
        "reused    400 rows, committed by earlier runs",
        "this run  95 ok + 0 error + 5 filtered",
    ]
    assert not [line for line in seen if line.startswith("next")]


def test_a_run_whose_output_nobody_counted(run: Any) -> None:
    """Without figures of the whole output, those of this run are given as such."""
    run.start(rows=100, reused=50)
    run.ready()
    run.commit(50)
    run.finish()
    assert lines(run)[1:4] == [
        "rows      100 of 100 committed",
        "reused    50 rows, committed by earlier runs",
        "this run  50 ok + 0 error + 0 filtered",
    ]


def test_a_folder_with_spaces_can_be_copied(run: Any) -> None:
    """The command to run next is quoted for the shell."""
    from dataclasses import replace

    run.start(rows=1, units=1)
    run.ready()
    run.commit(1)
    run.finish(rows_ok=1, rows_error=0, rows_filtered=0)
    seen = summary(replace(run.tally.snapshot(), output="/data/my out"))
    assert seen[-1].plain == "next      batchinfer verify '/data/my out'"


def test_a_run_that_never_began_has_no_summary(run: Any) -> None:
    """Where planning failed, the error says everything."""
    run.finish(exit_code=66)
    assert lines(run) == []


def test_what_a_run_took(run: Any) -> None:
    """Cost and device-hours where a price is known, energy where the GPUs tell it, and what went wrong."""
    run.start(devices=("cuda:0", "cuda:1"), price_per_device_hour=1.8)
    run.ready()
    run.batch(500, after=500, split=True)
    run.say(WorkerExited(worker=0, code=-9, restarts=True))
    run.ready()
    run.batch(1000, after=500)
    run.commit(1000)
    run.finish(rows_ok=1000, rows_error=0, rows_filtered=0)
    told = [line.plain for line in summary(replace(run.tally.snapshot(), energy_joules=75_600.0))]
    assert told[-5:-2] == [
        "cost      1.00   0.556 device-hours",
        "energy    0.021 kWh (75,600 J) by the GPUs, whoever used them",
        "trouble   batches computed in pieces: 1   restarts of workers: 1",
    ]
    assert not any(line.startswith("energy") for line in lines(run))
