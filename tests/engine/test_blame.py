"""The search for bad rows, whatever rows are bad: who is blamed, what is kept, and how many attempts it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.config.nested import RetryOptions
from batchinfer.engine.blame import Isolated, Trust, isolate
from batchinfer.engine.retry import Retry
from batchinfer.errors import BatchinferError, BudgetExceeded, DataError, OutOfMemory


class Attempts:
    """Fails where a range holds a bad row, or more rows than fit; counts how often it is asked."""

    def __init__(
        self, bad: set[int], fits: int = 10**9, error: Callable[[str], BatchinferError] = DataError
    ) -> None:
        self.bad, self.fits, self.error = bad, fits, error
        self.count = self.num_rows = 0

    def __call__(self, start: int, stop: int) -> list[int]:
        """Return the rows, or raise."""
        self.count += 1
        self.num_rows += stop - start
        rows = range(start, stop)
        if len(rows) > self.fits:
            raise OutOfMemory("no memory")
        if self.bad.intersection(rows):
            raise self.error("a bad row")
        return list(rows)


def search(num_rows: int, attempts: Attempts) -> Isolated[list[int]]:
    """Try all rows together, and search where that fails."""
    trust = Trust()
    trust.is_sound = True
    error: BatchinferError
    try:
        return Isolated(((0, num_rows, attempts(0, num_rows)),), {})
    except (DataError, OutOfMemory) as refused:
        error = refused
    return isolate(num_rows, attempts, error, trust, Retry(RetryOptions()))


def kept(found: Isolated[list[int]]) -> list[int]:
    """Return the rows that went well, in the order in which they come."""
    return [row for _, _, rows in found.good for row in rows]


@given(
    st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))),
    st.sampled_from([DataError, OutOfMemory]),
)
def test_exactly_the_bad_rows(case: tuple[int, set[int]], error: Callable[[str], BatchinferError]) -> None:
    """Exactly the bad rows are blamed, those that never fit too, the others are kept once and in order, and
    each bad row costs at most 2 log2(rows) + 2 attempts."""
    num_rows, bad = case
    attempts = Attempts(bad, error=error)
    found = search(num_rows, attempts)
    assert set(found.bad) == bad
    assert kept(found) == [row for row in range(num_rows) if row not in bad]
    assert attempts.count - 1 <= len(bad) * (2 * math.log2(num_rows) + 2)


@given(
    st.integers(2, 200).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=5), st.integers(1, 200))
    )
)
def test_memory_blames_nobody(case: tuple[int, set[int], int]) -> None:
    """Where only so many rows fit at once, all of them get through, except those that are bad."""
    num_rows, bad, fits = case
    found = search(num_rows, Attempts(bad, fits))
    assert set(found.bad) == bad
    assert kept(found) == [row for row in range(num_rows) if row not in bad]
    assert all(stop - start <= fits for start, stop, _ in found.good)


def test_the_ladder() -> None:
    """A batch of 1,024 rows where 100 fit goes down to 64, and stays there: no other attempt fails."""
    attempts = Attempts(set(), fits=100)
    found = search(1024, attempts)
    assert [stop - start for start, stop, _ in found.good] == [64] * 16
    assert attempts.count == 1 + 3 + 16


def test_a_row_without_memory() -> None:
    """A row that does not fit alone is blamed, with what memory said."""
    found = search(8, Attempts(set(), fits=0))
    assert list(found.bad) == list(range(8))
    assert all(isinstance(error, OutOfMemory) for error in found.bad.values())


def test_rows_that_only_fail_together() -> None:
    """A row is never blamed unheard: where each goes well alone, all are kept."""

    def attempt(start: int, stop: int) -> list[int]:
        if stop - start > 1:
            raise DataError("too many at once, in bad company")
        return list(range(start, stop))

    found = isolate(16, attempt, DataError("together"), Trust(), Retry(RetryOptions()))
    assert not found.bad
    assert kept(found) == list(range(16))


def test_a_broken_job() -> None:
    """Where none of the first 1,000 rows goes well, the error is the job's; but for memory, which is short."""
    attempts = Attempts(set(range(10_000)))
    with pytest.raises(BudgetExceeded, match=r"none of the first 1000 rows succeeded.*: a bad row"):
        isolate(10_000, attempts, DataError("all of them"), Trust(), Retry(RetryOptions()))
    assert attempts.count < 1_050
    with pytest.raises(OutOfMemory, match="no memory"):
        isolate(10_000, Attempts(set(), fits=0), OutOfMemory("all"), Trust(), Retry(RetryOptions()))


@pytest.mark.parametrize("allowed", ["100%", 2_000])
def test_a_job_that_may_fail(monkeypatch: pytest.MonkeyPatch, allowed: str | int) -> None:
    """Where all of them may fail, each is blamed."""
    monkeypatch.setattr(Trust, "allowed", allowed)
    attempts = Attempts(set(range(2_000)))
    found = isolate(2_000, attempts, DataError("all of them"), Trust(), Retry(RetryOptions()))
    assert len(found.bad) == 2_000


def test_the_cost_of_one() -> None:
    """One bad row in 64 has at most 127 rows computed again, and fewer than 80 on average."""
    costs = []
    for bad in range(64):
        attempts = Attempts({bad})
        search(64, attempts)
        costs.append(attempts.num_rows - 64)
    assert max(costs) <= 127
    assert sum(costs) / 64 < 80


def test_rows_in_a_row() -> None:
    """64 rows that all fail cost little more than one attempt each."""
    attempts = Attempts(set(range(64)))
    search(64, attempts)
    assert attempts.count <= 1 + 6 + 64
