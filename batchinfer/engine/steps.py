"""The preprocessing steps, one after the other: good rows go on, a bad row stays behind with its reason.

Runs in the worker's threads, or in a loader process that has nothing else of the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import registry, tensors
from batchinfer.data import Encoded, ErrorCode, Failure

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.protocols import Preprocessor


@dataclass(frozen=True, slots=True)
class StepFailure:
    """Why a row failed, and in which step."""

    stage: str
    code: ErrorCode
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Stepped:
    """A chunk after its steps: what the model gets of the rows that are left.

    `good` are their positions in the chunk, int64 of shape (rows,), in source order; `failed` the others.
    """

    rows: pa.RecordBatch
    good: np.ndarray[Any, Any]
    failed: Mapping[int, StepFailure]


class Steps:
    """A job's steps, in order. Called from several threads at once.

    `columns` are what the model gets, `floats` those of them that `model.forbid_nan` is about.
    """

    def __init__(
        self, job: Job, steps: Sequence[Preprocessor], *, columns: Sequence[str], floats: Sequence[str]
    ) -> None:
        self._columns = list(columns)
        self._floats = list(floats)
        self._fail_fast = job.errors.on_error == "fail"
        self._stages: list[tuple[str, Callable[[pa.RecordBatch], Encoded]]] = [
            (step.name, part.encode) for step, part in zip(job.preprocess, steps, strict=True)
        ]
        self._stages.append(("model", self._without_nulls))
        if job.model.forbid_nan:
            self._stages.append(("model", self._finite))

    def __call__(self, rows: pa.RecordBatch) -> Stepped:
        """Return what is left of the rows. Where one failed row ends the run, nothing follows it."""
        good = np.arange(rows.num_rows)
        failed: dict[int, StepFailure] = {}
        for stage, encode in self._stages:
            encoded = encode(rows)
            rows = encoded.rows
            if not encoded.failed:
                continue
            keep = np.ones(len(good), dtype=bool)
            for position, failure in encoded.failed.items():
                keep[position] = False
                failed[int(good[position])] = StepFailure(stage, failure.code, failure.message)
            rows, good = rows.filter(pa.array(keep)), good[keep]
            if self._fail_fast:
                return Stepped(rows.slice(0, 0), good[:0], failed)
        return Stepped(rows.select(self._columns), good, failed)

    def _without_nulls(self, rows: pa.RecordBatch) -> Encoded:
        """Find the rows whose model inputs are null, or hold a null: a tensor has no place for it."""
        bad: dict[int, Failure] = {}
        for column in self._columns:
            for position in tensors.null_rows(rows[column]).tolist():
                bad.setdefault(position, Failure(ErrorCode.SCHEMA, f"column {column!r} is null"))
        return Encoded(rows, bad)

    def _finite(self, rows: pa.RecordBatch) -> Encoded:
        """Find the rows whose float inputs hold NaN or infinity."""
        bad: dict[int, Failure] = {}
        for column in self._floats if rows.num_rows else ():
            for position in _rows_not_finite(rows[column]):
                message = f"{column} holds NaN or infinity, which model.forbid_nan refuses"
                bad.setdefault(int(position), Failure(ErrorCode.SCHEMA, message))
        return Encoded(rows, bad)


def load_steps(job: Job) -> list[Preprocessor]:
    """Make the preprocessing steps of a job, not yet told what they get."""
    return [registry.load("preprocessors", step.name)(step.options) for step in job.preprocess]


def _rows_not_finite(column: pa.Array) -> np.ndarray[Any, Any]:
    """Return the positions of rows that hold NaN or infinity; the column holds no null."""
    if tensors.is_ragged(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        owners = np.repeat(np.arange(len(column)), tensors.lengths(column))
        return np.unique(owners[~np.isfinite(flat)])
    values = tensors.to_numpy(column).reshape(len(column), -1)
    return np.flatnonzero(~np.isfinite(values).all(axis=1))
