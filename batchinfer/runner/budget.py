"""How many rows may fail: judged as the run goes, and over the whole output at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchinfer.errors import BudgetExceeded

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.data import Receipt, RowError

_MIN_ROWS_TO_JUDGE = 1_000
"""Where so many rows were done and none succeeded, the rest is not worth its time."""

_MAX_SAMPLES = 10


class Budget:
    """`errors.max`, judged as the run goes and at its end.

    A share is one of all rows of the input: which units are done first is chance, and must not decide how
    the run ends. So it goes on until more rows failed than the whole input may have, or until none of the
    first rows succeeded.
    """

    def __init__(self, job: Job, *, rows_planned: int) -> None:
        self._max = job.errors.max
        self._rows_planned = rows_planned
        self._rows = self._failed = 0
        self._first = ""
        self.samples: tuple[RowError, ...] = ()
        """The first few failed rows of this run."""

    @property
    def allowed(self) -> int:
        """How many rows of the whole input may fail."""
        return int(self._allowed(self._rows_planned))

    def add(self, receipt: Receipt) -> None:
        """Count a unit. Raises BudgetExceeded where the run cannot end well any more."""
        self._rows += receipt.rows_read
        self._failed += receipt.rows_error
        self.samples = (*self.samples, *receipt.errors)[:_MAX_SAMPLES]
        if receipt.errors and not self._first:
            first = receipt.errors[0]
            self._first = f"{first.source} row {first.row}, {first.stage}: {first.message}"
        if self._failed == self._rows >= _MIN_ROWS_TO_JUDGE:
            self.judge(rows=self._rows, failed=self._failed)
        self._judge(self._failed, of=self._rows, allowed=self._allowed(self._rows_planned))

    def judge(self, *, rows: int, failed: int) -> None:
        """Raise BudgetExceeded if so many failed rows of so many are too many."""
        self._judge(failed, of=rows, allowed=self._allowed(rows))

    def _allowed(self, rows: int) -> float:
        """Return how many of so many rows may fail."""
        return self._max if isinstance(self._max, int) else float(self._max.rstrip("%")) / 100 * rows

    def _judge(self, failed: int, *, of: int, allowed: float) -> None:
        if failed > allowed:
            raise BudgetExceeded(
                f"{failed} of {of} rows failed, more than errors.max ({self._max}) allows",
                where=self._first,
                hint="everything committed is kept; `batchinfer errors` shows the rows, "
                "BATCHINFER_DEBUG=1 the first traceback; or raise errors.max",
            )
