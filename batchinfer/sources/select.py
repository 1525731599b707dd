"""Which rows go on: `where`, and `sample`, a stable share by the hash of file and row number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.arrow_views import column_of
from batchinfer.data import Chunk, Shard, Unit
from batchinfer.errors import ContractError, DataError
from batchinfer.sources.condition import Condition
from batchinfer.sources.drift import why_absent
from batchinfer.sources.hive import partition_column, partition_scalar
from batchinfer.sources.sampling import parse_share, sampled
from batchinfer.sources.where import parse_where

if TYPE_CHECKING:
    from batchinfer.config.sections import InputOptions
    from batchinfer.protocols import Source

_ROW = "\0row"
_COUNTED_ROWS = 65_536


def count_selected(source: Source, unit: Unit, *, schema: pa.Schema, limit: int) -> tuple[int, int]:
    """Return how many rows of a unit are selected, `limit` at most, and the row behind the last of
    them (the unit's stop where there are fewer). Reads only what `where` needs."""
    if not source.selection.selects:
        stop = min(unit.stop, unit.start + limit)
        return stop - unit.start, stop
    count = 0
    for chunk in source.read(unit, schema=schema, columns=(), batch_rows=_COUNTED_ROWS):
        if count + len(chunk.numbers) >= limit:
            return limit, int(chunk.numbers[limit - count - 1]) + 1
        count += len(chunk.numbers)
    return count, unit.stop


class Selection:
    """Applies the job's `where` and `sample` to rows as they are read, and gives them their types."""

    def __init__(self, options: InputOptions) -> None:
        self.where: Condition | None = parse_where(options.where) if options.where else None
        self._share = parse_share(options.sample) if options.sample else None

    @property
    def selects(self) -> bool:
        """Whether rows may be left out."""
        return self.where is not None or self._share is not None

    def file_columns(self, columns: Sequence[str], shard: Shard) -> list[str]:
        """Return the columns to read from the file: those asked for and those of `where`."""
        return [name for name in self._named(columns) if name not in shard.partition]

    def check(self, schema: pa.Schema) -> None:
        """Raise ContractError where `where` names an unknown column or compares what cannot be, and
        DataError where some of the files lack a column of it."""
        if self.where is None:
            return
        for name in self.where.columns:
            if name not in schema.names:
                raise self._unknown(self.where, name, schema)
        try:
            schema.empty_table().filter(self.where.bind(schema))
        except (pa.ArrowException, NotImplementedError) as error:
            raise ContractError(f"input.where cannot be evaluated: {error}") from error

    def may_match(self, shard: Shard, schema: pa.Schema) -> bool:
        """Tell whether the partition values of a shard leave any row that `where` can keep."""
        if self.where is None or not shard.partition:
            return True
        import pyarrow.dataset as ds  # late: it imports pandas where that is installed

        folders = ds.IpcFileFormat()  # stands for any format: only the folders' values are looked at
        fragment = folders.make_fragment(
            pa.BufferReader(b""), partition_expression=partition_guarantee(shard, schema)
        )
        folder = ds.FileSystemDataset([fragment], schema, folders)
        return next(folder.get_fragments(filter=self.where.bind(schema)), None) is not None

    def chunks(
        self,
        unit: Unit,
        pieces: Iterable[tuple[int, pa.RecordBatch]],
        *,
        schema: pa.Schema,
        columns: Sequence[str],
    ) -> Iterator[Chunk]:
        """Turn pieces (number of the first row, rows of the file) into chunks of selected rows."""
        expression = self.where.bind(schema) if self.where is not None else None
        named, wanted = self._named(columns), list(columns)
        planned = pa.schema([(name, schema.field(name).type) for name in named])
        for first, piece in pieces:
            numbers = np.arange(first, first + piece.num_rows)
            if self._share is not None:
                kept = np.flatnonzero(sampled(unit.shard.key, numbers, self._share))
                piece, numbers = _taken(piece, numbers, kept)  # noqa: PLW2901 - fewer of the same
            rows = piece if piece.schema.equals(planned) else self._complete(unit, piece, planned)
            if expression is not None:
                rows, numbers = _taken(rows, numbers, self._matching(rows, expression, unit))
            if len(numbers):
                yield Chunk(unit, rows if named == wanted else rows.select(wanted), numbers)

    def _named(self, columns: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*columns, *(self.where.columns if self.where else ())]))

    def _complete(self, unit: Unit, piece: pa.RecordBatch, planned: pa.Schema) -> pa.RecordBatch:
        """Put columns in order, add those of the folders, widen what was planned to be wider."""
        arrays = []
        for name, field in zip(planned.names, planned, strict=True):
            if name in unit.shard.partition:
                column = partition_column(unit.shard.partition[name], field.type, piece.num_rows)
            elif name in piece.schema.names:
                column = _cast(piece[name], field, unit)
            else:
                raise DataError(f"column {name!r} is missing", where=unit.shard.uri)
            arrays.append(column)
        # Only a batch knows how many rows it has when it has no column.
        return pa.RecordBatch.from_arrays(arrays, schema=planned) if arrays else piece.select([])

    def _matching(self, rows: pa.RecordBatch, expression: Any, unit: Unit) -> np.ndarray[Any, Any]:
        """Return the positions of the rows that `where` keeps, int64 of shape (kept rows,)."""
        assert self.where is not None
        position = column_of(np.arange(rows.num_rows))
        tested = [rows[name] for name in self.where.columns]
        table = pa.table([*tested, position], names=[*self.where.columns, _ROW])
        try:
            kept: np.ndarray[Any, Any] = table.filter(expression)[_ROW].to_numpy()
        except pa.ArrowException as error:
            raise DataError(f"input.where cannot be evaluated: {error}", where=unit.shard.uri) from error
        return kept

    def _unknown(self, where: Condition, name: str, schema: pa.Schema) -> ContractError | DataError:
        if reason := why_absent(schema, name):
            return DataError(f"input.where: {reason}")
        hint = f"texts stand in single quotes: '{name}'" if name in where.quoted else None
        return ContractError(
            f"input.where: column {name!r} is not in the input",
            hint=hint or f"there are {', '.join(schema.names)}",
        )


def partition_guarantee(shard: Shard, schema: pa.Schema) -> Any:
    """Return what the folders of a shard promise about its rows, as an Arrow expression."""
    import pyarrow.compute as pc  # late: it takes a while

    terms = []
    for name, value in shard.partition.items():
        scalar = partition_scalar(value, schema.field(name).type)
        terms.append(pc.field(name).is_null() if value is None else pc.field(name) == scalar)
    return reduce(and_, terms)


def _taken(
    rows: pa.RecordBatch, numbers: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]
) -> tuple[pa.RecordBatch, np.ndarray[Any, Any]]:
    """Return the rows at some positions, without a copy where all are kept."""
    if len(kept) == rows.num_rows:
        return rows, numbers
    return (rows.take(column_of(kept)) if rows.num_columns else rows.slice(0, len(kept))), numbers[kept]


def _cast(column: pa.Array, field: pa.Field, unit: Unit) -> pa.Array:
    if column.type == field.type:
        return column
    try:
        if pa.types.is_run_end_encoded(column.type):
            import pyarrow.compute as pc  # late: it takes a while

            column = pc.run_end_decode(column)
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"column {field.name!r} has type {column.type} here, and not every value fits {field.type}, as "
            "it was planned",
            where=unit.shard.uri,
        ) from error
