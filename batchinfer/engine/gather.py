"""Results of a window's batches to output rows: postprocess, type, put back into source order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.arrow_views import column_of
from batchinfer.data import ErrorCode, HostBatch, OutputBatch, Poison, RowError, TypedBatch, Window
from batchinfer.engine.blame import REFUSALS, Trust, isolate
from batchinfer.engine.care import entry_of, key_of, numbers_of
from batchinfer.engine.encode import first_row, row_failed
from batchinfer.engine.isolate import not_finite, rows_of
from batchinfer.engine.kept_input import kept_inputs
from batchinfer.engine.retry import passing_code
from batchinfer.errors import DataError, OutOfMemory, UserCodeError, unit_context
from batchinfer.row_errors import ERROR_TYPE

if TYPE_CHECKING:
    from batchinfer.config.error_section import ErrorsOptions
    from batchinfer.data import Column, Tensors
    from batchinfer.engine.care import Care
    from batchinfer.engine.contract import Contract
    from batchinfer.engine.retry import Retry
    from batchinfer.errors import BatchinferError
    from batchinfer.protocols import Postprocessor


def windows_of(results: Iterable[TypedBatch]) -> Iterator[tuple[Window, list[TypedBatch]]]:
    """Group a stream of results by window. Batches arrive in the order they were made."""
    gathered: list[TypedBatch] = []
    for typed in results:
        gathered.append(typed)
        window = typed.batch.window
        if len(gathered) == window.num_batches:
            yield window, gathered
            gathered = []


class Gatherer:
    """Makes the output rows of a window."""

    def __init__(
        self,
        contract: Contract,
        names: Sequence[str],
        posts: Sequence[Postprocessor],
        errors: ErrorsOptions,
        care: Care,
        retry: Retry,
    ) -> None:
        self._care = care
        self._retry = retry
        self._contract = contract
        self._fail_fast = errors.on_error == "fail"
        self._check_finite = errors.check_finite
        self._trust = Trust()
        self._posts = list(zip(names, posts, strict=True))

    def typed(self, output: OutputBatch) -> TypedBatch:
        """Postprocess one batch and give each result its declared type; rows that fail are left out."""
        if output.restored is not None:
            return TypedBatch(output.batch, output.restored, restored=True)
        if not len(output.batch.rows):
            return TypedBatch(output.batch, ())
        window = output.batch.window
        with unit_context(window.span.unit):
            failed = {row: _row_error(window, row, "model", error) for row, error in output.refused.items()}
            whole = () if output.refused or output.pieces else (output,)
            done = [typed for piece in (*whole, *output.pieces) for typed in self._carefully(piece, failed)]
            if failed and self._fail_fast:
                raise row_failed(failed[min(failed)])
            return _joined(output.batch, done, failed)

    def _carefully(self, output: OutputBatch, failed: dict[int, RowError]) -> Iterator[TypedBatch]:
        """Postprocess a batch whole; one that a worker died on, in pieces."""
        batch, num_rows = output.batch, len(output.batch.rows)
        unit = batch.window.span.unit.index
        cuts = self._care.cuts("postprocess", unit, key_of(batch), num_rows)
        for start, stop, alone in cuts:
            part = output if len(cuts) == 1 else rows_of(output, start, stop)
            with self._care.holding(entry_of("postprocess", batch, start, stop, alone=alone), alone=alone):
                typed = self._finished(part, failed)
            yield typed

    def _finished(self, output: OutputBatch, failed: dict[int, RowError]) -> TypedBatch:
        """Postprocess a batch that went well, and note in `failed` the rows that a step refuses."""
        try:
            return self._checked(output, self._columns(output), failed)
        except _StepError as refused:
            first = refused

        def attempt(start: int, stop: int) -> list[pa.Array]:
            """Postprocess some of the rows."""
            try:
                return self._columns(rows_of(output, start, stop))
            except _StepError as again:
                stages[start] = again.stage
                raise again.error from again.error.__cause__

        stages: dict[int, str] = {0: first.stage}
        batch = output.batch
        with first_row(batch.window.span.unit, lambda: int(numbers_of(batch, 0, 1)[0])):
            found = isolate(len(batch.rows), attempt, first.error, self._trust, self._retry)
        for at, error in found.bad.items():
            row = int(output.batch.rows[at])
            failed[row] = _row_error(output.batch.window, row, stages.get(at, first.stage), error)
        done = [
            self._checked(rows_of(output, start, stop), columns, failed)
            for start, stop, columns in found.good
        ]
        return _joined(output.batch, done, failed)

    def _checked(
        self, output: OutputBatch, columns: list[pa.Array], failed: dict[int, RowError]
    ) -> TypedBatch:
        """Leave out the rows whose results are not finite, where `errors.check_finite` asks for it."""
        typed = TypedBatch(output.batch, tuple(columns))
        self._trust.is_sound = True
        if not self._check_finite:
            return typed
        found: dict[int, str] = {}
        for field, column in zip(self._contract.results, columns, strict=True):
            for at in tensors.rows_not_finite(column).tolist():
                found.setdefault(at, field.name)
        for at, name in found.items():
            row = int(output.batch.rows[at])
            failed[row] = _row_error(output.batch.window, row, "model", not_finite(name))
        return _without(typed, list(found)) if found else typed

    def rows(self, window: Window, batches: Sequence[TypedBatch]) -> pa.Table:
        """Return every row of the window in source order: carried columns, results, `_error`."""
        schema = self._contract.gathered
        if window.carried is None:
            return pa.Table.from_arrays([tensors.nulls(field.type, 0) for field in schema], schema=schema)
        results = self._results(window, batches)
        num_rows = window.carried.num_rows
        columns = []
        failed = _all_failed(window, batches)
        for field in schema:
            if field.name in results:
                columns.append(results[field.name])
            elif field.name == "_error":
                columns.append(_errors(failed, num_rows))
            elif field.name == "_input":
                columns.append(kept_inputs(window.carried, failed))
            else:
                column = window.carried[field.name]
                columns.append(column if column.type == field.type else column.cast(field.type))
        return pa.Table.from_arrays(columns, schema=schema)

    def _results(self, window: Window, batches: Sequence[TypedBatch]) -> dict[str, Any]:
        """Put the results back into source order, with nulls for failed rows. Those in order stay where they
        are, a piece for each batch."""
        num_rows = window.carried.num_rows if window.carried is not None else 0
        full = [typed for typed in batches if len(typed.batch.rows)]
        if not full:
            return {field.name: tensors.nulls(field.type, num_rows) for field in self._contract.results}
        positions = np.concatenate([typed.batch.rows for typed in full])
        order = _source_order(positions, num_rows)
        columns = {}
        for at, field in enumerate(self._contract.results):
            pieces = [typed.columns[at] for typed in full]
            whole = pa.chunked_array(pieces, field.type)
            columns[field.name] = whole if order is None else whole.combine_chunks().take(order)
        return columns

    def _columns(self, output: OutputBatch) -> list[pa.Array]:
        """Postprocess and type a batch. Raises _StepError, and what is no row's fault."""
        batch, stage = output.batch, "model"
        results = _first(output.tensors, len(batch.rows), batch)
        # Packed inputs have no row of their own for each row.
        inputs = batch.tensors if batch.is_packed else _first(batch.tensors, len(batch.rows), batch)
        try:
            for name, step in self._posts:
                stage = name
                results = self._apply(name, step, results, inputs)
            return [self._column(results, field, batch) for field in self._contract.results]
        except REFUSALS as error:
            raise _StepError(stage, error) from error

    def _column(self, results: Mapping[str, Column], field: pa.Field, batch: HostBatch) -> pa.Array:
        column = _typed_column(results, field, num_rows=len(batch.rows))
        return _without_padding(column, batch) if field.name in self._contract.varying else column

    def _apply(
        self, name: str, step: Postprocessor, results: Mapping[str, Column], inputs: Tensors
    ) -> Mapping[str, Column]:
        try:
            return step.apply(results, inputs)
        except (KeyError, ValueError, TypeError, IndexError, pa.ArrowException) as error:
            # Its text may quote what it got.
            raise DataError(
                f"postprocess step {name!r} failed on a batch: {type(error).__name__}",
                hint="BATCHINFER_DEBUG=1 shows the whole traceback, which may quote rows",
            ) from error


class _StepError(Exception):
    """What the model or a step gave is refused; `error` says why, `stage` whose it was."""

    def __init__(self, stage: str, error: BatchinferError) -> None:
        super().__init__(stage)
        self.stage = stage
        self.error = error


def failures(window: Window, batches: Sequence[TypedBatch]) -> list[RowError]:
    """Return the failed rows of a window, in source order."""
    failed = _all_failed(window, batches)
    return [failed[row] for row in sorted(failed)]


def _all_failed(window: Window, batches: Sequence[TypedBatch]) -> Mapping[int, RowError]:
    failed = dict(window.failed)
    for typed in batches:
        failed |= typed.failed
    return failed


def _row_error(window: Window, row: int, stage: str, error: BatchinferError | Poison) -> RowError:
    """Record why a row of a window failed, with its place in its file."""
    attempts = error.attempts
    if isinstance(error, Poison):
        stage, code, message = error.stage, error.code, error.message
    else:
        code = _code_of(error)
        message = error.message if error.where is None else f"{error.message} at {error.where}"
    assert window.carried is not None
    return RowError(
        stage=stage,
        code=code,
        message=message,
        attempts=attempts,
        source=window.span.unit.shard.key,
        row=window.carried["#row"][row].as_py(),
    )


def _code_of(error: BatchinferError) -> ErrorCode:
    if isinstance(error, OutOfMemory):
        return ErrorCode.MEMORY
    usual = ErrorCode.USER if isinstance(error, UserCodeError) else ErrorCode.MODEL
    return passing_code(error) or usual


def _joined(batch: HostBatch, done: Sequence[TypedBatch], failed: Mapping[int, RowError]) -> TypedBatch:
    """Put the pieces of a batch together again, with the rows of it that failed."""
    if not failed and len(done) == 1:
        return done[0]
    full = [typed for typed in done if len(typed.batch.rows)]
    rows = np.concatenate([typed.batch.rows for typed in full]) if full else np.empty(0, np.int64)
    columns = tuple(
        pa.concat_arrays(arrays) for arrays in zip(*(typed.columns for typed in full), strict=True)
    )
    return TypedBatch(dataclasses.replace(batch, rows=rows), columns, failed=failed)


def _without(typed: TypedBatch, positions: Sequence[int]) -> TypedBatch:
    """Leave out some rows of a batch."""
    keep = np.ones(len(typed.batch.rows), dtype=bool)
    keep[list(positions)] = False
    mask = pa.array(keep)
    columns = tuple(column.filter(mask) for column in typed.columns)
    return TypedBatch(dataclasses.replace(typed.batch, rows=typed.batch.rows[keep]), columns)


def _typed_column(results: Mapping[str, Column], field: pa.Field, *, num_rows: int) -> pa.Array:
    """Make one result column of a batch. Raises DataError where the model broke its word."""
    wanted = f"output column {field.name!r} must be {tensors.format_type(field.type)}"
    if field.name not in results:
        raise DataError(f"{wanted}, but the model gave no {field.name!r}")
    try:
        array = tensors.to_arrow(results[field.name], field.type)
    except pa.ArrowException as error:
        # Arrow quotes the value that it stumbles over, and a row's content is nobody else's business.
        raise DataError(
            f"{wanted}, but the model's result does not convert to it",
            hint="BATCHINFER_DEBUG=1 shows the whole traceback, which may quote rows",
        ) from error
    except ValueError as error:
        raise DataError(f"{wanted}, but the model's result {error}") from error
    if len(array) != num_rows:
        raise DataError(f"{wanted} for {num_rows} rows, but the model gave {len(array)}")
    return array


def _first(columns: Mapping[str, Column], num_rows: int, batch: HostBatch) -> Mapping[str, Column]:
    """Leave out the rows that only filled a batch up. A model that gave fewer is told so later."""
    if not batch.filled:
        return columns
    wanted = num_rows + batch.filled
    return {name: value[:num_rows] if len(value) == wanted else value for name, value in columns.items()}


def _without_padding(column: pa.Array, batch: HostBatch) -> pa.Array:
    """Cut values for each token to the tokens that a row has: as many as a batch is wide are such values."""
    lengths = batch.lengths
    if lengths is None or not batch.width or column.null_count or not pa.types.is_list(column.type):
        return column
    if int(lengths.min()) == batch.width or not (tensors.lengths(column) == batch.width).all():
        return column
    real = np.arange(batch.width) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = column.flatten().filter(pa.array(real.reshape(-1)))
    return pa.ListArray.from_arrays(column_of(offsets), values, type=column.type)


def _source_order(positions: np.ndarray[Any, Any], num_rows: int) -> pa.Array | None:
    """Return for each row of the window where its result is, null if it failed; None if in place."""
    if len(positions) == num_rows and bool((positions == np.arange(num_rows)).all()):
        return None
    where = np.full(num_rows, -1, dtype=np.int64)
    where[positions] = np.arange(len(positions))
    missing = where < 0
    return pa.array(where, mask=missing) if missing.any() else column_of(where)


def _errors(failed: Mapping[int, RowError], num_rows: int) -> pa.Array:
    """Return the `_error` column: null where a row succeeded."""
    if not failed:
        return tensors.nulls(ERROR_TYPE, num_rows)
    cells: list[dict[str, Any] | None] = [None] * num_rows
    for row, error in failed.items():
        cells[row] = {
            "stage": error.stage,
            "code": str(error.code),
            "message": error.message,
            "attempts": error.attempts,
            "source": error.source,
            "row": error.row,
        }
    return pa.array(cells, ERROR_TYPE)
