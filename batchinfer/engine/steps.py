"""The preprocessing steps, one after the other: good rows go on, a bad row stays behind with its reason.

Runs in the worker's threads, or in a loader process that has nothing else of the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import registry, tensors
from batchinfer.data import Encoded, ErrorCode, Failure
from batchinfer.engine.blame import REFUSALS, Trust, isolate
from batchinfer.engine.retry import passing_code
from batchinfer.errors import BatchinferError, ContractError, OutOfMemory, UserCodeError

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.engine.retry import Retry
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
        self,
        job: Job,
        steps: Sequence[Preprocessor],
        *,
        columns: Sequence[str],
        floats: Sequence[str],
        retry: Retry,
    ) -> None:
        self._columns = list(columns)
        self._floats = list(floats)
        self._fail_fast = job.errors.on_error == "fail"
        self._trust = Trust()
        self._retry = retry
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
            try:
                encoded = encode(rows)
            except REFUSALS as error:
                encoded = self._without_bad(encode, rows, error)
            self._trust.is_sound |= len(encoded.failed) < rows.num_rows
            rows = encoded.rows
            if not encoded.failed:
                continue
            keep = np.ones(len(good), dtype=bool)
            for position, failure in encoded.failed.items():
                keep[position] = False
                failed[int(good[position])] = StepFailure(
                    stage, failure.code, failure.message, failure.attempts
                )
            rows, good = rows.filter(pa.array(keep)), good[keep]
            if self._fail_fast:
                return Stepped(rows.slice(0, 0), good[:0], failed)
        return Stepped(rows.select(self._columns), good, failed)

    def _without_bad(
        self, encode: Callable[[pa.RecordBatch], Encoded], rows: pa.RecordBatch, error: BatchinferError
    ) -> Encoded:
        """Find the rows that a step raises on. They stay in their places, as nulls."""
        found = isolate(
            rows.num_rows,
            lambda start, stop: encode(rows.slice(start, stop - start)),
            error,
            self._trust,
            self._retry,
        )
        failed = {
            start + position: failure
            for start, _, encoded in found.good
            for position, failure in encoded.failed.items()
        }
        for at, refused in found.bad.items():
            code = _code_of(refused)
            message = refused.message if refused.where is None else f"{refused.message} at {refused.where}"
            failed[at] = Failure(code, message, refused.attempts)
        pieces = [encoded.rows for _, _, encoded in found.good] or [encode(rows.slice(0, 0)).rows]
        together = pa.Table.from_batches(pieces).combine_chunks()
        places = np.full(rows.num_rows, -1)
        for start, stop, _ in found.good:
            places[start:stop] = 0
        places[places == 0] = np.arange(together.num_rows)
        taken = together.take(pa.array(places, mask=places < 0))
        (batch,) = taken.combine_chunks().to_batches() or [pieces[0].slice(0, 0)]
        return Encoded(batch, failed)

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
            for position in tensors.rows_not_finite(rows[column]):
                message = f"{column} holds NaN or infinity, which model.forbid_nan refuses"
                bad.setdefault(int(position), Failure(ErrorCode.SCHEMA, message))
        return Encoded(rows, bad)


def _code_of(error: BatchinferError) -> ErrorCode:
    if isinstance(error, OutOfMemory):
        return ErrorCode.MEMORY
    usual = ErrorCode.USER if isinstance(error, UserCodeError) else ErrorCode.SCHEMA
    return passing_code(error) or usual


def load_steps(job: Job, device: str) -> list[Preprocessor]:
    """Make the preprocessing steps of a job, not yet told what they get. Raises ContractError where one
    cannot work beside a model on `device`."""
    steps: list[Preprocessor] = [
        registry.load("preprocessors", step.name)(step.options) for step in job.preprocess
    ]
    for at, step in enumerate(steps):
        if not hasattr(step, "place"):
            continue
        later = [other.input_columns() for other in steps[at + 1 :]]
        added = getattr(job.preprocess[at].options, "to", None)
        alone = not any(names is None or added in names for names in later)
        try:
            step.place(device, alone=alone, in_loader=job.compute.loaders == "processes")
        except ContractError as error:
            key = ("preprocess", at, job.preprocess[at].name)
            place = f"{job.place(key)}  preprocess[{at}].{job.preprocess[at].name}"
            raise ContractError(f"{place}: {error.message}", hint=error.hint) from error
    return steps


def merged(pieces: Iterable[tuple[int, Stepped]], num_rows: int) -> Stepped:
    """Put pieces together again, each with the position of its first row."""
    rows, good = [], []
    failed: dict[int, StepFailure] = {}
    for start, piece in pieces:
        rows.append(piece.rows)
        good.append(piece.good + start)
        failed |= {row + start: failure for row, failure in piece.failed.items()}
    full = [piece for piece in rows if piece.num_rows] or rows[:1]
    found = Stepped(pa.concat_batches(full), np.concatenate(good), failed)
    assert len(found.good) + len(failed) == num_rows
    return found
