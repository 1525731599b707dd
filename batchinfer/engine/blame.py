"""Who is to blame: rows that fail together are cut until only those that fail are left out.

The search is adaptive group testing: thirds until the first bad row is found, then groups as long as the
rows since the last one, doubled while they pass (generalized binary splitting, Hwang 1972, for a number of
bad rows that nobody knows; a third that fails wastes less than a half does, and is hardly an attempt more).
A bad row costs at most 2 log2(rows) + 2 further attempts, and rows next to each other that
all fail cost one each. What passes is kept and never computed again. Which pieces rows are
cut into depends on them alone, so a repeated unit gives the same results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from batchinfer.config.error_section import rows_allowed
from batchinfer.errors import BatchinferError, BudgetExceeded, DataError, OutOfMemory, to_message

if TYPE_CHECKING:
    from batchinfer.engine.retry import Retry

T = TypeVar("T")

REFUSALS = (DataError, OutOfMemory)
"""What rows may be at fault for. Any other error is about the job, the device or a store."""

_HOPELESS_ROWS = 1_000
"""Where so many rows were tried alone and none succeeded, the rest is not worth its time."""


@dataclass(frozen=True, slots=True)
class Isolated(Generic[T]):
    """Rows [start, stop) that went well with what they gave, in order; and why each other row did not."""

    good: tuple[tuple[int, int, T], ...]
    bad: Mapping[int, BatchinferError]


class Trust:
    """Whether rows are at fault, or the job: none of many rows that were tried alone ever went well.

    How many may fail is judged where units are committed (`runner/budget.py`). Here it only ends what would
    be asked row by row for ever.
    """

    presumed: ClassVar[bool] = False
    """Whether the job is known to be sound: rows of it went well, here before or elsewhere."""

    allowed: ClassVar[str | int] = 0
    """How many rows may fail: the job's `errors.max`."""

    def __init__(self) -> None:
        self.is_sound = False
        self._num_bad = 0

    def blame(self, error: BatchinferError) -> BatchinferError:
        """Return the error that a row failed with. Raises BudgetExceeded where no row ever went well and the
        job does not allow for it; OutOfMemory where it is that.

        Who debugs (BATCHINFER_DEBUG=1) sees the traceback of the first.
        """
        self._num_bad += 1
        if self._num_bad == 1 and os.environ.get("BATCHINFER_DEBUG"):
            print(to_message(error)["details"], file=sys.stderr, flush=True)  # noqa: T201 - asked for
        if self._is_hopeless():
            raise error if isinstance(error, OutOfMemory) else self._too_many(error) from error
        return error

    def _is_hopeless(self) -> bool:
        if self._num_bad < _HOPELESS_ROWS or self.is_sound or self.presumed:
            return False
        return self._num_bad > rows_allowed(self.allowed, self._num_bad)

    def _too_many(self, error: BatchinferError) -> BudgetExceeded:
        why = error.message if error.where is None else f"{error.message} at {error.where}"
        hint = error.hint or "BATCHINFER_DEBUG=1 shows the first traceback"
        return BudgetExceeded(
            f"none of the first {self._num_bad} rows succeeded, and errors.max ({self.allowed}) allows fewer "
            f"failed ones: {why}",
            hint=f"everything committed is kept; {hint}; or raise errors.max",
        )


def isolate(
    num_rows: int, attempt: Callable[[int, int], T], error: BatchinferError, trust: Trust, retry: Retry
) -> Isolated[T]:
    """Find the rows to blame for an `error` of rows [0, num_rows). `attempt(start, stop)` tries some of them.

    What failed for a passing reason is tried again, all together and in the end each row alone, before it
    is blamed.

    Where memory ran out no row is to blame, unless it is alone: the rest goes on in pieces of a size
    that passed. Raises an error that is not the rows' fault.
    """
    try:
        return Isolated(((0, num_rows, retry.again(error, lambda: attempt(0, num_rows))),), {})
    except REFUSALS as last:
        return _Search(num_rows, attempt, trust, retry).run(last)


class _Search(Generic[T]):
    """Goes through the rows once, from the left. Those before `at` are decided."""

    def __init__(self, num_rows: int, attempt: Callable[[int, int], T], trust: Trust, retry: Retry) -> None:
        self._attempt = attempt
        self._retry = retry
        self._trust = trust
        self._num_rows = num_rows
        self._at = 0
        self._group = num_rows
        self._most = num_rows
        self._largest = 0
        self._good: list[tuple[int, int, T]] = []
        self._bad: dict[int, BatchinferError] = {}

    def run(self, error: BatchinferError) -> Isolated[T]:
        """Search, where all rows together failed with `error`."""
        failure: BatchinferError | None = error
        while self._at < self._num_rows:
            stop = min(self._at + min(self._group, self._most), self._num_rows)
            failure = failure or self._refusal(self._at, stop)
            if failure is None:
                self._at, self._group = stop, self._group * 2
            elif isinstance(failure, OutOfMemory):
                self._shrink(stop, failure)
            else:
                self._corner(stop, failure)
            failure = None
        return Isolated(tuple(self._good), self._bad)

    def _corner(self, stop: int, failure: BatchinferError) -> None:
        """Find the first bad row before `stop`: there is one."""
        at, heard = self._at, True
        while stop - at > 1:
            part = at + max((stop - at) // 3, 1)
            if found := self._refusal(at, part):
                stop, failure, heard = part, found, True
            else:
                at, heard = part, False
        # That the rest fails was only inferred: a row is never blamed unheard.
        found = failure if heard else self._refusal(at, stop)
        if found is not None:
            self._bad[at] = self._trust.blame(found)
        self._at, self._group = stop, max(at - self._at, 1)

    def _shrink(self, stop: int, failure: BatchinferError) -> None:
        """Find out how many rows fit into memory."""
        while stop - self._at > 1:
            stop = (self._at + stop) // 2
            found = self._refusal(self._at, stop)
            if found is None:
                self._group = self._most = stop - self._at
                self._at = stop
                return
            if not isinstance(found, OutOfMemory):
                self._corner(stop, found)
                return
        self._bad[self._at] = self._trust.blame(failure)
        # It fits nowhere, which says nothing of the others, unless they are all like it.
        self._group = 1 if self._at - 1 in self._bad else max(self._largest, 1)
        self._at, self._most = stop, self._num_rows

    def _refusal(self, start: int, stop: int) -> BatchinferError | None:
        """Try some rows, and keep what they give."""
        try:
            self._good.append((start, stop, self._patiently(start, stop)))
        except REFUSALS as refused:
            return refused
        finally:
            self._retry.on_attempt()
        self._trust.is_sound = True
        self._largest = max(self._largest, stop - start)
        return None

    def _patiently(self, start: int, stop: int) -> T:
        """Try some rows; one that is alone as often as its error allows."""
        try:
            return self._attempt(start, stop)
        except REFUSALS as refused:
            if stop - start > 1:
                raise
            return self._retry.again(refused, lambda: self._attempt(start, stop))
