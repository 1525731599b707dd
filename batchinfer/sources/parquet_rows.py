"""Rows of a Parquet row group, decoded a few megabytes at a time, whatever the footer says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.errors import DataError

_PIECE_BYTES = 32 * 1024 * 1024
_MAX_BYTES = 512 * 1024 * 1024
_MOST_INFLATED = 100
_PROBE_BYTES = 2 * 1024 * 1024
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}
_INDEX_BYTES = 4


@dataclass(frozen=True, slots=True)
class OpenParquet:
    """A file with its footer. It is closed when nothing refers to it: a cursor may outlive a unit."""

    uri: str
    raw: Any
    file: pq.ParquetFile


class Cursor:
    """The rows of one row group from `at` on. Pieces lie on one grid, wherever a unit begins."""

    def __init__(
        self, opened: OpenParquet, group: int, columns: Sequence[str], *, first: int, batch_rows: int
    ) -> None:
        rows = _rows_at_once(opened, group, columns, batch_rows)
        self.at = first
        self._where = opened.uri
        self._batches = opened.file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns))
        self._rest: pa.RecordBatch | None = None
        self._allowed = max(_MAX_BYTES, _MOST_INFLATED * _stored_bytes(opened, group, columns))
        self._batch_rows = batch_rows
        self._rows = self._bytes = 0

    def take(self, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield rows [start, stop) with the number of the first of each piece. Moves `at` to `stop`.

        Raises DataError where fewer rows come than the footer has, or where they inflate too much.
        """
        while self.at < stop:
            batch = self._next()
            low, high = max(self.at, start), min(self.at + batch.num_rows, stop)
            piece = batch.slice(low - self.at, high - low) if low < high else None
            rest = batch.slice(high - self.at) if high < self.at + batch.num_rows else None
            self.at, self._rest = min(self.at + batch.num_rows, stop), rest
            if piece is not None:
                yield low, piece

    def _next(self) -> pa.RecordBatch:
        if self._rest is not None:
            return self._rest
        batch = next(self._batches, None)
        if batch is None:
            raise DataError(
                f"the rows end at row {self.at}, before the footer says",
                where=self._where,
                hint="write the file anew, or leave it out of input.path",
            )
        self._count(batch)
        return batch

    def _count(self, batch: pa.RecordBatch) -> None:
        """Refuse a bomb before its pieces pile up behind the reader: few rows of many bytes, which the
        file stores in next to none."""
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._bytes > self._allowed:
            raise _bomb(self._rows, self._bytes, self._allowed, self._where)
        if self._rows >= self._batch_rows:
            self._rows = self._bytes = 0


def _rows_at_once(opened: OpenParquet, group: int, columns: Sequence[str], batch_rows: int) -> int:
    """Return how many rows decode to at most about 32 MiB, `batch_rows` at most.

    A value that stands once in a column's dictionary may stand for millions of rows: the footer's
    sizes do not tell, so that the longest entry is looked up. Raises DataError where a row takes
    512 MiB.
    """
    footer = opened.file.metadata.row_group(group)
    most: int = max(1, min(batch_rows, footer.num_rows))
    row_bytes = 0.0
    risky: dict[str, float] = {}
    for at in range(footer.num_columns):
        chunk = footer.column(at)
        if not _is_of(chunk.path_in_schema, columns):
            continue
        per_row = chunk.num_values / max(footer.num_rows, 1)
        row_bytes += per_row * _value_bytes(chunk, opened.file.schema.column(at))
        shared = chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page
        if shared and chunk.total_uncompressed_size * per_row * most > _PIECE_BYTES:
            risky[chunk.path_in_schema] = per_row
    if row_bytes > _MAX_BYTES:
        raise _bomb(1, int(row_bytes), _MAX_BYTES, opened.uri)
    worst = row_bytes
    for path, longest in _longest(opened, group, list(risky)).items():
        worst += longest * risky[path]
    return max(1, min(most, int(_PIECE_BYTES / max(worst, 1))))


def _is_of(path: str, columns: Sequence[str]) -> bool:
    """Tell whether a leaf belongs to one of the columns."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _value_bytes(chunk: Any, leaf: Any) -> float:
    """Return the decoded bytes of a value, on average, if the footer is right."""
    if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return float(leaf.length)
    if chunk.physical_type == "BYTE_ARRAY":
        return _INDEX_BYTES + float(chunk.total_uncompressed_size / max(chunk.num_values, 1))
    return _WIDTHS.get(chunk.physical_type, 8)


def _longest(opened: OpenParquet, group: int, paths: Sequence[str]) -> dict[str, int]:
    """Return the length in bytes of the longest dictionary entry of some leaves.

    Only the dictionaries are decoded: as many rows as come with one, by their indices.
    """
    if not paths:
        return {}
    probe = pq.ParquetFile(
        opened.raw,
        metadata=opened.file.metadata,
        read_dictionary=list(paths),
        buffer_size=_PROBE_BYTES,
    )
    found = {}
    for path in paths:
        batch = next(probe.iter_batches(batch_size=1, row_groups=[group], columns=[path]), None)
        found[path] = max((_longest_in(column) for column in batch.columns), default=0) if batch else 0
    return found


def _longest_in(array: pa.Array) -> int:
    """Return the length of the longest entry in the dictionaries of an array, also of a nested one."""
    if pa.types.is_dictionary(array.type):
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if pa.types.is_struct(array.type):
        return max((_longest_in(array.field(at)) for at in range(array.type.num_fields)), default=0)
    if pa.types.is_map(array.type):
        return max(_longest_in(array.keys), _longest_in(array.items))
    return _longest_in(array.values) if hasattr(array, "values") else 0


def _stored_bytes(opened: OpenParquet, group: int, columns: Sequence[str]) -> int:
    """Return the bytes that some columns of a row group take in the file."""
    footer = opened.file.metadata.row_group(group)
    chunks = (footer.column(at) for at in range(footer.num_columns))
    return sum(chunk.total_compressed_size for chunk in chunks if _is_of(chunk.path_in_schema, columns))


def _bomb(rows: int, size: int, limit: int, where: str) -> DataError:
    return DataError(
        f"{rows} rows decode to {size:,} bytes, above the limit of {limit:,} for this file",
        where=where,
        hint="the file may be a decompression bomb; if it is not, keep large values in files of their own",
    )
