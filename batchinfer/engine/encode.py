"""A chunk as it will be batched: what its steps left for the model, what is carried, who failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from batchinfer.arrow_views import column_of, repeated
from batchinfer.data import Chunk, EncodedChunk, RowError, UnitEnd
from batchinfer.engine.kept_input import INPUT
from batchinfer.errors import BudgetExceeded, unit_context

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.data import Unit
    from batchinfer.engine.steps import StepFailure, Stepped


class Encoder:
    """Turns chunks into encoded chunks. Called from several threads at once.

    `steps` does the work: in the calling thread (`Steps`), or in a process of its own (`Loaders`).
    """

    def __init__(self, job: Job, steps: Callable[[Chunk], Stepped], *, run: str) -> None:
        self._steps = steps
        self._carry = job.output.carry
        self._meta = job.output.meta
        self._constants = {"_model_version": job.model.version, "_run": run}
        self._fail_fast = job.errors.on_error == "fail"
        self._keep_input = job.errors.keep_input

    def __call__(self, item: Chunk | UnitEnd) -> EncodedChunk | UnitEnd:
        """Encode one chunk; the end of a unit passes through."""
        if isinstance(item, UnitEnd):
            return item
        with unit_context(item.unit):
            return self._encode(item)

    def _encode(self, chunk: Chunk) -> EncodedChunk:
        with first_row(chunk.unit, lambda: int(chunk.numbers[0])):
            stepped = self._steps(chunk)
        failed = {row: _row_error(chunk, row, failure) for row, failure in stepped.failed.items()}
        if failed and self._fail_fast:
            raise row_failed(failed[min(failed)])
        return EncodedChunk(
            unit=chunk.unit,
            carried=self._carried(chunk),
            tensors=stepped.rows,
            good=stepped.good,
            failed=failed,
        )

    def _carried(self, chunk: Chunk) -> pa.RecordBatch:
        """Keep what the output needs of every row, failed ones too, and where each came from."""
        num_rows = chunk.rows.num_rows
        columns = {name: chunk.rows[name] for name in self._carry}
        for name in self._meta:
            columns[name] = self._provenance(chunk, name)
        if self._keep_input:
            columns |= {INPUT + name: chunk.rows[name] for name in chunk.rows.schema.names}
        # The row numbers travel along even if nobody carries a column: a batch needs a length.
        columns["#row"] = column_of(chunk.numbers)
        assert all(len(column) == num_rows for column in columns.values())
        return pa.RecordBatch.from_pydict(columns)

    def _provenance(self, chunk: Chunk, name: str) -> pa.Array:
        if name == "_row":
            return column_of(chunk.numbers)
        value = chunk.unit.shard.key if name == "_source" else self._constants[name]
        return repeated(value, chunk.rows.num_rows)


def row_failed(failed: RowError) -> BudgetExceeded:
    """Return the end of a run where one failed row is too many.

    It comes before anything of the unit is written: a part without `_error` must not hold a failed row.
    """
    return BudgetExceeded(
        f"a row failed in {failed.stage}: {failed.message}",
        where=f"{failed.source} row {failed.row}",
        hint="mend the row, or set errors.on_error: record to go on without it",
    )


@contextmanager
def first_row(unit: Unit, number: Callable[[], int]) -> Iterator[None]:
    """Name the first of some rows, by its number in its file, where none of them went well and that ends the
    run."""
    try:
        yield
    except BudgetExceeded as error:
        error.where = error.where or f"{unit.shard.key} row {number()}"
        raise


def _row_error(chunk: Chunk, row: int, failure: StepFailure) -> RowError:
    return RowError(
        stage=failure.stage,
        code=failure.code,
        message=failure.message,
        attempts=failure.attempts,
        source=chunk.unit.shard.key,
        row=int(chunk.numbers[row]),
    )
