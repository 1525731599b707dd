"""Which rows go on: `where`, and `sample`, a stable share by the hash of file and row number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.data import Chunk, Unit
from batchinfer.errors import ContractError, DataError
from batchinfer.sources.hive import partition_column
from batchinfer.sources.where import Condition, parse_where

if TYPE_CHECKING:
    from batchinfer.config.sections import InputOptions

_FULL = 2**64
_ROW = "#row"


def parse_share(text: str) -> float:
    """Parse `1%` or `0.25%` to a fraction in (0, 1]. Raises ValueError."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not text.strip().endswith("%") or not 0 < share <= 1:
        raise ValueError(f"must be a share above 0% and up to 100%, such as 1%, got {text!r}")
    return share


class Selection:
    """Applies the job's `where` and `sample` to rows as they are read, and gives them their types."""

    def __init__(self, options: InputOptions) -> None:
        self.where: Condition | None = parse_where(options.where) if options.where else None
        self._share = parse_share(options.sample) if options.sample else None

    @property
    def selects(self) -> bool:
        """Whether rows may be left out."""
        return self.where is not None or self._share is not None

    def file_columns(self, columns: Sequence[str], unit: Unit) -> list[str]:
        """Return the columns to read from the file: those asked for and those of `where`."""
        wanted = [*columns, *(self.where.columns if self.where else ())]
        return [name for name in dict.fromkeys(wanted) if name not in unit.shard.partition]

    def check(self, schema: pa.Schema) -> None:
        """Raise ContractError where `where` names an unknown column or compares what cannot be."""
        if self.where is None:
            return
        for name in self.where.columns:
            if name not in schema.names:
                raise ContractError(
                    f"input.where: column {name!r} is not in the input", hint=f"there are {schema.names}"
                )
        try:
            schema.empty_table().filter(self.where.expression)
        except (pa.ArrowException, NotImplementedError) as error:
            raise ContractError(f"input.where cannot be evaluated: {error}") from error

    def chunks(
        self,
        unit: Unit,
        pieces: Iterable[tuple[int, pa.RecordBatch]],
        *,
        schema: pa.Schema,
        columns: Sequence[str],
    ) -> Iterator[Chunk]:
        """Turn pieces (number of the first row, rows of the file) into chunks of selected rows."""
        for first, piece in pieces:
            numbers = np.arange(first, first + piece.num_rows)
            rows = self._complete(unit, piece, schema, columns)
            if self._share is not None:
                keep = _sampled(unit.shard.key, numbers, self._share)
                rows, numbers = rows.filter(pa.array(keep)), numbers[keep]
            if self.where is not None:
                rows, numbers = self._filtered(rows, numbers)
            if len(numbers):
                yield Chunk(unit, rows.select(list(columns)), numbers)

    def _complete(
        self, unit: Unit, piece: pa.RecordBatch, schema: pa.Schema, columns: Sequence[str]
    ) -> pa.RecordBatch:
        """Add partition columns, and widen what the plan found to be wider elsewhere."""
        names = list(dict.fromkeys([*columns, *(self.where.columns if self.where else ())]))
        arrays = []
        for name in names:
            field = schema.field(name)
            if name in unit.shard.partition:
                column = partition_column(unit.shard.partition[name], field.type, piece.num_rows)
            elif name in piece.schema.names:
                column = _cast(piece[name], field, unit)
            else:
                raise DataError(f"column {name!r} is missing", where=unit.shard.uri)
            arrays.append(column)
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _filtered(
        self, rows: pa.RecordBatch, numbers: np.ndarray[Any, Any]
    ) -> tuple[pa.RecordBatch, np.ndarray[Any, Any]]:
        assert self.where is not None
        table = pa.Table.from_batches([rows]).append_column(_ROW, pa.array(numbers))
        kept = table.filter(self.where.expression).combine_chunks()
        left = kept[_ROW].to_numpy()
        kept = kept.drop_columns([_ROW])
        batches = kept.to_batches()
        return (batches[0] if batches else rows.slice(0, 0)), left


def _cast(column: pa.Array, field: pa.Field, unit: Unit) -> pa.Array:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"column {field.name!r} has type {column.type} here and {field.type} in the first file",
            where=unit.shard.uri,
        ) from error


def _sampled(key: str, numbers: np.ndarray[Any, Any], share: float) -> np.ndarray[Any, Any]:
    """Choose rows by splitmix64 (Steele, Lea, Flood 2014) of the row number, seeded by the file's key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    limit = min(int(share * _FULL), _FULL - 1)
    chosen: np.ndarray[Any, Any] = z <= np.uint64(limit)
    return chosen
