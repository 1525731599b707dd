"""Results of a window's batches to output rows: postprocess, type, put back into source order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import HostBatch, OutputBatch, RowError, TypedBatch, Window
from batchinfer.engine.contract import ERROR_TYPE
from batchinfer.errors import DataError, unit_context

if TYPE_CHECKING:
    from batchinfer.data import Column, Tensors
    from batchinfer.engine.contract import Contract
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

    def __init__(self, contract: Contract, names: Sequence[str], posts: Sequence[Postprocessor]) -> None:
        self._contract = contract
        self._posts = list(zip(names, posts, strict=True))

    def typed(self, output: OutputBatch) -> TypedBatch:
        """Postprocess one batch and give each result its declared type."""
        if output.restored is not None:
            return TypedBatch(output.batch, output.restored, restored=True)
        if not len(output.batch.rows):
            return TypedBatch(output.batch, ())
        with unit_context(output.batch.window.span.unit):
            return TypedBatch(output.batch, tuple(self._columns(output)))

    def rows(self, window: Window, batches: Sequence[TypedBatch]) -> pa.Table:
        """Return every row of the window in source order: carried columns, results, `_error`."""
        schema = self._contract.output
        if window.carried is None:
            return schema.empty_table()
        results = self._results(window, batches)
        num_rows = window.carried.num_rows
        columns = []
        for field in schema:
            if field.name in results:
                columns.append(results[field.name])
            elif field.name == "_error":
                columns.append(_errors(window.failed, num_rows))
            else:
                columns.append(tensors.to_arrow(window.carried[field.name], field.type))
        return pa.Table.from_arrays(columns, schema=schema)

    def _results(self, window: Window, batches: Sequence[TypedBatch]) -> dict[str, pa.Array]:
        """Put the results back into source order, with nulls for failed rows."""
        num_rows = window.carried.num_rows if window.carried is not None else 0
        full = [typed for typed in batches if len(typed.batch.rows)]
        if not full:
            return {field.name: tensors.nulls(field.type, num_rows) for field in self._contract.results}
        positions = np.concatenate([typed.batch.rows for typed in full])
        order = _source_order(positions, num_rows)
        columns = {}
        for at, field in enumerate(self._contract.results):
            pieces = [typed.columns[at] for typed in full]
            whole = pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)
            columns[field.name] = whole if order is None else whole.take(order)
        return columns

    def _columns(self, output: OutputBatch) -> list[pa.Array]:
        batch = output.batch
        results = _first(output.tensors, len(batch.rows), batch)
        # Packed inputs have no row of their own for each row.
        packed = batch.lengths is not None and not batch.width
        inputs = batch.tensors if packed else _first(batch.tensors, len(batch.rows), batch)
        for name, step in self._posts:
            results = self._apply(name, step, results, inputs)
        columns = []
        for field in self._contract.results:
            column = _typed_column(results, field, num_rows=len(batch.rows))
            if field.name in self._contract.varying:
                column = _without_padding(column, batch)
            columns.append(column)
        return columns

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
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=column.type)


def _source_order(positions: np.ndarray[Any, Any], num_rows: int) -> pa.Array | None:
    """Return for each row of the window where its result is, null if it failed; None if in place."""
    if len(positions) == num_rows and bool((positions == np.arange(num_rows)).all()):
        return None
    where = np.full(num_rows, -1, dtype=np.int64)
    where[positions] = np.arange(len(positions))
    return pa.array(where, mask=where < 0)


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
