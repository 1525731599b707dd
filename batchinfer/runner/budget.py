"""How many rows may fail: judged as the run goes, and over the whole output at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from batchinfer.config.error_section import rows_allowed
from batchinfer.errors import BudgetExceeded
from batchinfer.runner.partitions import partition_of, rows_planned, rows_written

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.data import Receipt, RowError
    from batchinfer.runner.earlier import Earlier
    from batchinfer.runner.plan import Plan

_MIN_ROWS_TO_JUDGE = 1_000
"""Where so many rows were done and none succeeded, the rest is not worth its time."""

_MAX_SAMPLES = 10


class Budget:
    """`errors.max` and `errors.max_per_partition`, judged as the run goes and at its end.

    A share is one of all rows of the input, or of the partition: which units are done first is chance, and
    must not decide how the run ends. So it goes on until more rows failed than the whole may have, or until
    none of the first rows succeeded. A retry, which begins with failed rows, is judged at its end alone.

    Rows that failed in an earlier run of the same plan count as well. They are asked for once a row has
    failed in this one: until then a run that resumes costs no more than one listing.
    """

    def __init__(self, job: Job, plan: Plan, earlier: Earlier) -> None:
        self._max = job.errors.max
        self._max_each = job.errors.max_per_partition
        self._plan = plan
        self._planned = {} if self._max_each is None else rows_planned(plan)
        self._rows = self._failed = self._failed_earlier = 0
        self._failed_in: dict[str, int] = {}
        self._first = ""
        self._first_in: dict[str, str] = {}
        self._earlier = earlier if earlier.is_any and self._can_be_exceeded() else None
        """Units that are not counted yet."""
        self.samples: tuple[RowError, ...] = ()
        """The first few failed rows of this run."""

    @property
    def allowed(self) -> int:
        """How many rows of the whole input may fail."""
        return int(rows_allowed(self._max, self._plan.num_rows))

    def add(self, receipt: Receipt) -> None:
        """Count a unit. Raises BudgetExceeded where the run cannot end well any more."""
        self.samples = (*self.samples, *receipt.errors)[:_MAX_SAMPLES]
        partition = self._count(receipt.unit, receipt.rows_read, receipt.rows_error)
        if receipt.errors:
            first = receipt.errors[0]
            told = f"{first.source} row {first.row}, {first.stage}: {first.message}"
            self._first = self._first or told
            self._first_in.setdefault(partition, told)
        if receipt.rows_error and self._earlier is not None:
            self._earlier.ask()
        self.check()
        self._judge_so_far([partition])

    def check(self) -> None:
        """Count what earlier runs did, once that is known. Raises BudgetExceeded."""
        if self._earlier is None or not (found := self._earlier.heard()):
            return
        self._earlier = None
        self._failed_earlier = sum(one.failed for one in found)
        for one in found:
            self._count(one.unit, one.rows, one.failed)
        self._judge_so_far(sorted(self._failed_in))

    def close(self) -> None:
        """Ask no more."""
        if self._earlier is not None:
            self._earlier.close()

    def judge(self, manifest: Mapping[str, Any], plans: Callable[[], Mapping[str, Plan]]) -> None:
        """Judge the whole output. `plans` reads those of its parts, where they are asked for."""
        rows, failed = manifest["rows"], manifest["rows_error"]
        self._judge(failed, of=rows, allowed=rows_allowed(self._max, rows))
        if self._max_each is None:
            return
        for partition, (rows_there, failed_there) in sorted(rows_written(manifest, plans()).items()):
            self._judge_partition(partition, failed_there, of=rows_there)

    def _can_be_exceeded(self) -> bool:
        """Tell whether there is anything to judge before the end."""
        if self._plan.retry is not None:
            return False
        return self._max_each is not None or self.allowed < self._plan.num_rows

    def _count(self, unit: int, rows: int, failed: int) -> str:
        """Add a unit, and return its partition."""
        self._rows += rows
        self._failed += failed
        partition = partition_of(self._plan.unit(unit).shard)
        self._failed_in[partition] = self._failed_in.get(partition, 0) + failed
        return partition

    def _judge_so_far(self, partitions: Iterable[str]) -> None:
        if self._plan.retry is not None:
            return
        # What this run began with need not be all: rows may have succeeded before.
        if self._earlier is None and self._failed == self._rows >= _MIN_ROWS_TO_JUDGE:
            self._judge(self._failed, of=self._rows, allowed=rows_allowed(self._max, self._rows))
        planned = self._plan.num_rows
        self._judge(self._failed, of=planned, allowed=rows_allowed(self._max, planned))
        for partition in partitions if self._max_each is not None else ():
            self._judge_partition(partition, self._failed_in[partition], of=self._planned[partition])

    def _judge(self, failed: int, *, of: int, allowed: float) -> None:
        if failed > allowed:
            earlier = f" ({self._failed_earlier} of them in earlier runs)" if self._failed_earlier else ""
            raise _exceeded(
                f"{failed} of {of} rows failed{earlier}, more than errors.max ({self._max}) allows",
                where=self._first,
                key="errors.max",
            )

    def _judge_partition(self, partition: str, failed: int, *, of: int) -> None:
        assert self._max_each is not None
        if failed > rows_allowed(self._max_each, of):
            raise _exceeded(
                f"partition {partition}: {failed} of {of} rows failed, more than errors.max_per_partition "
                f"({self._max_each}) allows",
                where=self._first_in.get(partition, ""),
                key="errors.max_per_partition",
            )


def _exceeded(message: str, *, where: str, key: str) -> BudgetExceeded:
    return BudgetExceeded(
        message,
        where=where,
        hint="everything committed is kept; `batchinfer errors` shows the rows, "
        f"BATCHINFER_DEBUG=1 the first traceback; or raise {key}",
    )
