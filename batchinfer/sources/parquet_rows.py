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
_MAX_PIECE_BYTES = 512 * 1024 * 1024
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
        self, opened: OpenParquet, group: int, columns: Sequence[str], *, first: int, rows: int
    ) -> None:
        self.at = first
        self._where = opened.uri
        self._batches = opened.file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns))
        self._rest: pa.RecordBatch | None = None

    def take(self, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield rows [start, stop) with the number of the first of each piece. Moves `at` to `stop`.

        Raises DataError where fewer rows come than the footer has, or where few take 512 MiB.
        """
        while self.at < stop:
            batch = self._next()
            low, high = max(self.at, start), min(self.at + batch.num_rows, stop)
            piece = batch.slice(low - self.at, high - low) if low < high else None
            rest = batch.slice(high - self.at) if high < self.at + batch.num_rows else None
            begin, self.at, self._rest = low, min(self.at + batch.num_rows, stop), rest
            if piece is not None:
                yield begin, piece

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
        if batch.nbytes > _MAX_PIECE_BYTES:
            raise _too_large(batch.nbytes // max(batch.num_rows, 1), self._where)
        return batch


def rows_at_once(opened: OpenParquet, group: int, columns: Sequence[str], batch_rows: int) -> int:
    """Return how many rows decode to at most about 32 MiB, `batch_rows` at most.

    A value that stands once in a column's dictionary may stand for millions of rows: the footer's
    sizes do not tell, so that the longest entry is looked up. Raises DataError where a row takes
    512 MiB.
    """
    footer = opened.file.metadata.row_group(group)
    most = max(1, min(batch_rows, footer.num_rows))
    row_bytes, risky = 0.0, []
    for at in range(footer.num_columns):
        chunk = footer.column(at)
        if not _is_of(chunk.path_in_schema, columns):
            continue
        per_row = chunk.num_values / max(footer.num_rows, 1)
        row_bytes += per_row * _value_bytes(chunk, opened.file.schema.column(at))
        if chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page:
            if chunk.total_uncompressed_size * per_row * most > _PIECE_BYTES:
                risky.append((chunk.path_in_schema, per_row))
    if row_bytes > _MAX_PIECE_BYTES:
        raise _too_large(int(row_bytes), opened.uri)
    worst = row_bytes
    for path, longest in _longest(opened, group, [path for path, _ in risky]).items():
        worst += longest * dict(risky)[path]
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


def _too_large(row_bytes: int, where: str) -> DataError:
    return DataError(
        f"a row decodes to about {row_bytes:,} bytes; a piece of a file may take {_MAX_PIECE_BYTES:,}",
        where=where,
        hint="the file may be a decompression bomb; if it is not, keep large values in files of their own",
    )
