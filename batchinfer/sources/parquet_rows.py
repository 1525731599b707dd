"""Rows of a Parquet row group, decoded a few megabytes at a time, whatever the footer says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import DataError
from batchinfer.tensors import num_bytes

_PIECE_BYTES = 32 * 1024 * 1024
_MAX_BYTES = 512 * 1024 * 1024
_MOST_INFLATED = 100
_CHAINED = "DELTA_BYTE_ARRAY"
_CHAINED_BYTES = 128 * 1024 * 1024
_PROBE_BYTES = 2 * 1024 * 1024
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}
_INDEX_BYTES = 4


@dataclass(frozen=True, slots=True)
class OpenParquet:
    """A file with its footer. It is closed when nothing refers to it: a cursor may outlive a unit."""

    uri: str
    raw: Any
    file: pq.ParquetFile
    expected: set[tuple[int, tuple[str, ...]]] = field(default_factory=set)

    def expect(self, group: int, columns: Sequence[str]) -> None:
        """Begin to fetch some columns of a row group that will be read, where the file is far away."""
        key = (group, tuple(columns))
        if key in self.expected or not hasattr(self.raw, "expect"):
            return
        self.expected.add(key)
        self.raw.expect(
            (start, start + chunk.total_compressed_size)
            for _, chunk in _chunks(self, group, columns)
            if (start := _first_byte(chunk)) is not None and chunk.total_compressed_size > 0
        )


class Cursor:
    """The rows of one row group from `at` on. Pieces lie on one grid, wherever a unit begins."""

    def __init__(
        self, opened: OpenParquet, group: int, columns: Sequence[str], *, first: int, batch_rows: int
    ) -> None:
        _check_chunks(opened, group, columns)
        # What was fetched goes as it is read: whoever reads it again expects it anew.
        opened.expected.discard((group, tuple(columns)))
        rows = _rows_at_once(opened, group, columns, batch_rows)
        self.at = first
        self._where = opened.uri
        decoded = opened.file.iter_batches(
            batch_size=rows, row_groups=[group], columns=list(columns), use_threads=False
        )
        self._batches = _joined(decoded, batch_rows)
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
        self._bytes += num_bytes(batch)
        if self._bytes > self._allowed:
            raise _bomb(self._rows, self._bytes, self._allowed, self._where)
        if self._rows >= self._batch_rows:
            self._rows = self._bytes = 0


def _joined(batches: Iterator[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    """Put small pieces together to `most` rows, or 32 MiB: every piece costs the stages behind some work."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        added = num_bytes(batch)
        if waiting and (rows + batch.num_rows > most or size + added > _PIECE_BYTES):
            yield _whole(waiting)
            waiting, rows, size = [], 0, 0
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + added
    if waiting:
        yield _whole(waiting)


def _whole(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


class _NoBytesYet(Exception):
    """A reader has found the footer sound, and wants to begin."""


class _Unread:
    """A file that can only be asked for its size."""

    closed = False

    def __init__(self, size: int) -> None:
        self._size = size

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek to where nothing will be read."""
        return self._size + offset if whence == os.SEEK_END else offset

    def tell(self) -> int:
        """Return the size: nobody asks for the position but to learn it."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Refuse."""
        raise _NoBytesYet(size)

    def close(self) -> None:
        """Do nothing."""


def _check_chunks(opened: OpenParquet, group: int, columns: Sequence[str]) -> None:
    """Raise what a reader finds wrong with the footer's column chunks, without a request.

    Where a footer is damaged, pyarrow ends the process when it is asked for a chunk's metadata, and
    raises when it is asked for the chunk's rows.
    """
    if not columns:
        return
    footer = opened.file.metadata
    reader = pq.ParquetFile(pa.PythonFile(_Unread(opened.raw.size()), "r"), metadata=footer)
    with contextlib.suppress(_NoBytesYet):
        next(reader.iter_batches(batch_size=1, row_groups=[group], columns=list(columns)), None)


def _rows_at_once(opened: OpenParquet, group: int, columns: Sequence[str], batch_rows: int) -> int:
    """Return how many rows decode to at most about 32 MiB, `batch_rows` at most.

    A value that stands once in a column's dictionary may stand for millions of rows: the footer's
    sizes do not tell, so that the longest entry is looked up. A value that is stored as what differs
    from the one before may be as long as all that is stored: those are given more room, as most are
    short. Raises DataError where a row takes 512 MiB.
    """
    footer = opened.file.metadata.row_group(group)
    most: int = max(1, min(batch_rows, footer.num_rows))
    row_bytes = longest_chain = 0.0
    risky: dict[str, float] = {}
    for at, chunk in _chunks(opened, group, columns):
        per_row = chunk.num_values / max(footer.num_rows, 1)
        row_bytes += per_row * _value_bytes(chunk, opened.file.schema.column(at))
        if _CHAINED in chunk.encodings and chunk.physical_type == "BYTE_ARRAY":
            longest_chain += per_row * chunk.total_uncompressed_size
        shared = chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page
        if shared and chunk.total_uncompressed_size * per_row * most > _PIECE_BYTES:
            risky[chunk.path_in_schema] = per_row
    if row_bytes > _MAX_BYTES:
        raise _bomb(1, int(row_bytes), _MAX_BYTES, opened.uri)
    worst = row_bytes
    for path, longest in _longest(opened, group, list(risky)).items():
        worst += longest * risky[path]
    within = min(_PIECE_BYTES / max(worst, 1), _CHAINED_BYTES / max(longest_chain, 1))
    return max(1, min(most, int(within)))


def _chunks(opened: OpenParquet, group: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield the column chunks of some columns of a row group, each with its position."""
    footer, schema, wanted = opened.file.metadata.row_group(group), opened.file.schema, set(columns)
    for at in range(footer.num_columns):
        path = schema.column(at).path
        if path in wanted or ("." in path and _is_inside(path, columns)):
            yield at, footer.column(at)


def _first_byte(chunk: Any) -> int | None:
    """Return where a column chunk begins; None where its footer says nothing that could be."""
    begins = [
        at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at is not None and at > 0
    ]
    return min(begins, default=None)


def _is_inside(path: str, columns: Sequence[str]) -> bool:
    """Tell whether a leaf lies inside one of the columns."""
    return any(path.startswith(f"{name}.") for name in columns)


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
        import pyarrow.compute as pc  # late: it takes a while

        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if pa.types.is_struct(array.type):
        return max((_longest_in(array.field(at)) for at in range(array.type.num_fields)), default=0)
    if pa.types.is_map(array.type):
        return max(_longest_in(array.keys), _longest_in(array.items))
    return _longest_in(array.values) if hasattr(array, "values") else 0


def _stored_bytes(opened: OpenParquet, group: int, columns: Sequence[str]) -> int:
    """Return the bytes that some columns of a row group take in the file."""
    return sum(chunk.total_compressed_size for _, chunk in _chunks(opened, group, columns))


def _bomb(rows: int, size: int, limit: int, where: str) -> DataError:
    return DataError(
        f"{rows} rows decode to {size:,} bytes, above the limit of {limit:,} for this file",
        where=where,
        hint="the file may be a decompression bomb; if it is not, keep large values in files of their own",
    )
