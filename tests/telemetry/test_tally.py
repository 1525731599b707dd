"""Events to numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.data import ErrorCode
from batchinfer.events import RunFinished, RunStarted, UnitCommitted, Warned, WorkerExited, WorkerReady


def test_rows_are_counted_by_outcome(run: Any, failed_row: Callable[..., Any]) -> None:
    """Committed rows are ok, error or filtered, and with those of earlier runs they add up."""
    run.start(rows=1000, reused=300, units=10)
    run.ready()
    run.commit(90, errors=(failed_row(3), failed_row(4)), filtered=8)
    run.commit(100, unit=1)
    seen = run.tally.snapshot()
    assert (seen.rows_ok, seen.rows_error, seen.rows_filtered, seen.rows_reused) == (190, 2, 8, 300)
    assert seen.rows_committed == 500
    assert (seen.units_total, seen.units_reused, seen.units_committed) == (10, 3, 2)
    assert seen.error_ratio == pytest.approx(2 / 192)


def test_computed_rows_count_before_their_unit_is_committed(run: Any) -> None:
    """The bar moves with every batch, and a commit counts no row twice."""
    run.start(rows=1000)
    run.ready()
    run.batch(60, after=1)
    run.batch(60, after=1)
    assert run.tally.snapshot().rows_settled == 120
    run.commit(100)
    assert run.tally.snapshot().rows_settled == 120
    assert run.tally.snapshot().rows_committed == 100


def test_filtered_and_failed_rows_settle_with_their_unit(run: Any, failed_row: Callable[..., Any]) -> None:
    """Rows that never met the model are settled by the commit."""
    run.start(rows=1000)
    run.ready()
    run.batch(10, after=1)
    run.commit(10, errors=(failed_row(1),), filtered=89)
    assert run.tally.snapshot().rows_settled == 100


def test_a_dead_worker_takes_its_uncommitted_rows_with_it(run: Any) -> None:
    """What was computed and not committed is done again, so it is not settled any more."""
    run.start(rows=1000, workers=2)
    run.ready(0)
    run.ready(1)
    run.batch(50, worker=0, after=1)
    run.batch(70, worker=1, after=1)
    run.say(WorkerExited(worker=0, code=-9, restarts=True))
    seen = run.tally.snapshot()
    assert seen.rows_settled == 70
    assert [worker.state for worker in seen.workers] == ["restarting", "running"]
    run.ready(0)
    assert [worker.deaths for worker in run.tally.snapshot().workers] == [1, 0]
    assert run.tally.snapshot().workers[0].state == "running"


def test_eta_follows_the_rate(run: Any) -> None:
    """Half of the rows in ten seconds leave ten more; nobody knows before the first batch."""
    run.start(rows=1000)
    assert run.tally.snapshot().eta_s is None
    run.ready()
    for _ in range(10):
        run.batch(50, after=1)
    seen = run.tally.snapshot()
    assert seen.rows_per_second == pytest.approx(50)
    assert seen.samples_per_second == pytest.approx(50)
    assert seen.tokens_per_second == pytest.approx(500)
    assert seen.eta_s == pytest.approx(10)


def test_loading_the_model_does_not_slow_the_rate(run: Any) -> None:
    """The clock of the rate starts when a worker is ready."""
    run.start(rows=1000)
    run.clock.now = 60.0
    run.ready()
    run.batch(50, after=1)
    assert run.tally.snapshot().rows_per_second == pytest.approx(50)


def test_busy_is_the_share_of_time_spent_computing(run: Any) -> None:
    """A worker that computes half a second per second is half busy; the mean is over the workers."""
    run.start(rows=1000, workers=2)
    run.ready(0, "cuda:0")
    run.ready(1, "cuda:1")
    for _ in range(20):
        run.batch(1, worker=0, seconds=0.5, after=1)
        run.batch(1, worker=1, seconds=1.0)
    seen = run.tally.snapshot()
    assert [worker.device for worker in seen.workers] == ["cuda:0", "cuda:1"]
    assert seen.workers[0].busy_ratio == pytest.approx(0.5, rel=0.05)
    assert seen.workers[1].busy_ratio == pytest.approx(1.0, rel=0.05)
    assert seen.busy_ratio == pytest.approx(0.75, rel=0.05)
    assert seen.mean_busy_ratio == pytest.approx(0.75, rel=0.05)


def test_padding_is_the_share_of_tokens_without_meaning(run: Any) -> None:
    """10 of 16 tokens are real, so 6 of 16 are padding; rows without tokens have no padding."""
    run.start()
    assert run.tally.snapshot().padding_ratio is None
    run.ready()
    run.batch(10, after=1)
    assert run.tally.snapshot().padding_ratio == pytest.approx(6 / 16)


def test_errors_are_counted_by_code_with_few_samples(run: Any, failed_row: Callable[..., Any]) -> None:
    """Codes are counted in full; samples are five at most, and no two say the same."""
    run.start()
    run.ready()
    run.commit(0, errors=tuple(failed_row(row) for row in range(4)))
    run.commit(0, errors=tuple(failed_row(row, ErrorCode.MODEL, f"why {row}") for row in range(9)), unit=1)
    seen = run.tally.snapshot()
    assert seen.errors == {"model": 9, "decode": 4}
    assert [sample.message for sample in seen.error_samples] == [
        "text is null",
        "why 0",
        "why 1",
        "why 2",
        "why 3",
    ]


def test_failed_rows_beyond_the_samples_are_counted_too(run: Any, failed_row: Callable[..., Any]) -> None:
    """A receipt that names ten of a hundred failed rows still counts a hundred."""
    run.start()
    run.ready()
    run.commit(900, errors=tuple(failed_row(row) for row in range(100)))
    seen = run.tally.snapshot()
    assert seen.rows_error == 100
    assert seen.errors == {"decode": 100}


def test_batches_are_counted_and_timed(run: Any) -> None:
    """Every forward pass is in the histogram."""
    run.start()
    run.ready()
    run.batch(1, seconds=0.004)
    run.batch(1, seconds=0.2)
    seen = run.tally.snapshot()
    assert seen.num_batches == 2
    assert dict(seen.batch_seconds)["0.005"] == 1
    assert dict(seen.batch_seconds)["+Inf"] == 2
    assert seen.batch_seconds_sum == pytest.approx(0.204)


def test_the_end_stops_the_clock(run: Any) -> None:
    """After the last event, nothing changes any more; rows that were in flight are not settled."""
    run.start(rows=1000)
    run.ready()
    run.batch(100, after=1)
    run.commit(50)
    run.clock.now = 10.0
    run.finish(exit_code=75)
    seen = run.tally.snapshot()
    run.clock.now = 99.0
    assert run.tally.snapshot() == seen
    assert (seen.elapsed_s, seen.rows_settled) == (10.0, 50)
    assert seen.mean_rows_per_second == pytest.approx(5.0)


def test_a_run_that_never_began_is_empty(run: Any) -> None:
    """A run that fails while it plans has an end and no beginning."""
    run.say(Warned(code="store", message="slow"))
    run.finish(exit_code=66)
    seen = run.tally.snapshot()
    assert not seen.started
    assert seen.num_warnings == 1
    assert seen.finished is not None


def test_snapshots_may_be_taken_while_events_come(run: Any) -> None:
    """Readers in other threads never see a unit half counted."""
    run.start(rows=10**9, units=10**6)
    run.ready()
    wrong: list[object] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen = run.tally.snapshot()
            if seen.rows_ok != 7 * seen.units_committed or seen.rows_filtered != 3 * seen.units_committed:
                wrong.append(seen)

    reader = threading.Thread(target=watch)
    reader.start()
    for unit in range(3000):
        run.commit(7, filtered=3, unit=unit)
    stop.set()
    reader.join()
    assert wrong == []


EVENTS = st.lists(
    st.tuples(st.sampled_from(["batch", "commit", "exit", "ready"]), st.integers(0, 2), st.integers(0, 100)),
    max_size=60,
)


@given(EVENTS)
def test_no_order_of_events_gives_nonsense(
    new_run: Callable[[], Any], steps: list[tuple[str, int, int]]
) -> None:
    """However workers come, go, compute and commit, what is settled lies between committed and all."""
    run = new_run()
    run.start(rows=10_000, units=100, workers=2)
    for what, worker, number in steps:
        run.clock.now += 0.3
        if what == "batch":
            run.batch(number, worker=worker)
        elif what == "commit":
            run.commit(number, filtered=number % 7, worker=worker)
        elif what == "exit":
            run.say(WorkerExited(worker=worker, code=-9, restarts=bool(number % 2)))
        else:
            run.ready(worker)
        seen = run.tally.snapshot()
        assert seen.rows_committed <= seen.rows_settled <= max(seen.rows_total, seen.rows_committed)
        assert seen.rows_per_second >= 0
        assert all(0 <= state.busy_ratio <= 1 and 0 <= state.mean_busy_ratio <= 1 for state in seen.workers)


def test_only_the_events_of_the_house_are_known() -> None:
    """The tally handles every event there is: a new one must be given a meaning here."""
    from typing import get_args

    from batchinfer import events

    known = {
        "BatchFinished",
        "OthersCommitted",
        "PlanFollowed",
        "StagesTimed",
        "EfficiencyMeasured",
        "Retried",
        "WorkerSaid",
        "RunFailed",
        "Listening",
        "SettingsChosen",
        *(cls.__name__ for cls in (RunStarted, RunFinished, UnitCommitted)),
    }
    known |= {cls.__name__ for cls in (WorkerReady, WorkerExited, Warned)}
    assert {cls.__name__ for cls in get_args(events.Event)} == known
