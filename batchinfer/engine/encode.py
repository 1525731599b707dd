"""A chunk through the preprocessing steps: good rows go on, a bad row stays behind with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import Chunk, EncodedChunk, ErrorCode, Failure, RowError, UnitEnd
from batchinfer.engine.contract import META_TYPES
from batchinfer.errors import BudgetExceeded, unit_context

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.engine.contract import Contract
    from batchinfer.protocols import Preprocessor


class Encoder:
    """Turns chunks into encoded chunks. Called from several threads at once."""

    def __init__(self, job: Job, contract: Contract, steps: Sequence[Preprocessor], *, run: str) -> None:
        self._steps = [(step.name, part) for step, part in zip(job.preprocess, steps, strict=True)]
        self._carry = job.output.carry
        self._meta = job.output.meta
        self._constants = {"_model_version": job.model.version, "_run": run}
        self._columns = tuple(dict.fromkeys(bind.column for bind in contract.bindings))
        self._fail_fast = job.errors.on_error == "fail"
        self._forbid_nan = job.model.forbid_nan
        self._floats = [bind.column for bind in contract.bindings if bind.dtype.startswith("float")]

    def __call__(self, item: Chunk | UnitEnd) -> EncodedChunk | UnitEnd:
        """Encode one chunk; the end of a unit passes through."""
        if isinstance(item, UnitEnd):
            return item
        with unit_context(item.unit):
            return self._encode(item)

    def _encode(self, chunk: Chunk) -> EncodedChunk:
        rows, good = chunk.rows, np.arange(chunk.rows.num_rows)
        failed: dict[int, RowError] = {}
        for name, step in self._steps:
            encoded = step.encode(rows)
            rows, good = self._drop(chunk, encoded.rows, good, encoded.failed, failed, stage=name)
        rows, good = self._drop(chunk, rows, good, self._with_nulls(rows), failed, stage="model")
        if self._forbid_nan:
            rows, good = self._drop(chunk, rows, good, self._not_finite(rows), failed, stage="model")
        return EncodedChunk(
            unit=chunk.unit,
            carried=self._carried(chunk),
            tensors=rows.select(list(self._columns)),
            good=good,
            failed=failed,
        )

    def _drop(
        self,
        chunk: Chunk,
        rows: pa.RecordBatch,
        good: np.ndarray[Any, Any],
        failures: Any,
        failed: dict[int, RowError],
        *,
        stage: str,
    ) -> tuple[pa.RecordBatch, np.ndarray[Any, Any]]:
        """Record the rows that failed a step, and go on with the others."""
        if not failures:
            return rows, good
        keep = np.ones(len(good), dtype=bool)
        for position, failure in failures.items():
            row = int(good[position])
            keep[position] = False
            failed[row] = RowError(
                stage=stage,
                code=failure.code,
                message=failure.message,
                attempts=1,
                source=chunk.unit.shard.key,
                row=int(chunk.numbers[row]),
            )
        if self._fail_fast:
            # Before anything of the unit is written: a part without `_error` must not hold a failed row.
            first = failed[min(failed)]
            raise BudgetExceeded(
                f"a row failed in {first.stage}: {first.message}",
                where=f"{first.source} row {first.row}",
                hint="mend the row, or set errors.on_error: record to go on without it",
            )
        return rows.filter(pa.array(keep)), good[keep]

    def _with_nulls(self, rows: pa.RecordBatch) -> dict[int, Failure]:
        """Find the rows whose model inputs are null, or hold a null: a tensor has no place for it."""
        bad: dict[int, Failure] = {}
        for column in self._columns:
            for position in tensors.null_rows(rows[column]).tolist():
                bad.setdefault(position, Failure(ErrorCode.SCHEMA, f"column {column!r} is null"))
        return bad

    def _not_finite(self, rows: pa.RecordBatch) -> dict[int, Failure]:
        """Find the rows whose float inputs hold NaN or infinity."""
        bad: dict[int, Failure] = {}
        for column in self._floats if rows.num_rows else ():
            for position in _rows_not_finite(rows[column]):
                message = f"{column} holds NaN or infinity, which model.forbid_nan refuses"
                bad.setdefault(int(position), Failure(ErrorCode.SCHEMA, message))
        return bad

    def _carried(self, chunk: Chunk) -> pa.RecordBatch:
        """Keep what the output needs of every row, failed ones too, and where each came from."""
        num_rows = chunk.rows.num_rows
        columns = {name: chunk.rows[name] for name in self._carry}
        for name in self._meta:
            columns[name] = self._provenance(chunk, name)
        # The row numbers travel along even if nobody carries a column: a batch needs a length.
        columns["#row"] = pa.array(chunk.numbers, pa.int64())
        assert all(len(column) == num_rows for column in columns.values())
        return pa.RecordBatch.from_pydict(columns)

    def _provenance(self, chunk: Chunk, name: str) -> pa.Array:
        if name == "_row":
            return pa.array(chunk.numbers, pa.int64())
        value = chunk.unit.shard.key if name == "_source" else self._constants[name]
        return pa.repeat(pa.scalar(value, META_TYPES[name]), chunk.rows.num_rows)


def _rows_not_finite(column: pa.Array) -> np.ndarray[Any, Any]:
    """Return the positions of rows that hold NaN or infinity; the column holds no null."""
    if tensors.is_ragged(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        owners = np.repeat(np.arange(len(column)), tensors.lengths(column))
        return np.unique(owners[~np.isfinite(flat)])
    values = tensors.to_numpy(column).reshape(len(column), -1)
    return np.flatnonzero(~np.isfinite(values).all(axis=1))
