"""Parquet input: footers at plan time; only the needed columns and row groups when reading."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.data import Block, Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.parquet_rows import Cursor, OpenParquet
from batchinfer.sources.select import Selection, partition_guarantee

_SUFFIXES = (".parquet", ".pq", ".parq")
_KEPT_CURSORS = 2
_BUFFER_BYTES = 2 * 1024 * 1024


class ParquetOptions(SourceOptions):
    """Parquet files."""

    format: Literal["parquet"] = "parquet"


class ParquetSource:
    """Reads Parquet files."""

    Options = ParquetOptions

    def __init__(self, options: ParquetOptions) -> None:
        self._inputs = Inputs(options, _SUFFIXES)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], Cursor] = OrderedDict()
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return self._inputs.entries()

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Read a footer."""
        with _named(entry.uri):
            file = self._open(entry.uri, entry.version).file
            footer, schema = file.metadata, file.schema_arrow.remove_metadata()
            groups = [footer.row_group(at) for at in range(footer.num_row_groups)]
            blocks = tuple(
                Block(num_rows=group.num_rows, num_bytes=group.total_byte_size) for group in groups
            )
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise DataError(f"column {twice[0]!r} stands in the file more than once", where=entry.uri)
        return self._inputs.shard(entry, index=index, blocks=blocks), schema

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows, row group by row group."""
        if not self.selection.may_match(unit.shard, schema):
            return
        wanted = self.selection.file_columns(columns, unit.shard)
        with self._inputs.unchanged(unit.shard.uri, unit.shard.version), _named(unit.shard.uri):
            pieces = self._pieces(unit, schema, wanted, batch_rows)
            for chunk in self.selection.chunks(unit, pieces, schema=schema, columns=columns):
                _check_text(chunk)
                yield chunk

    def _open(self, uri: str, version: str) -> OpenParquet:
        raw = self._inputs.store(uri).open(uri, version=version)
        remote = "://" in uri
        # Far away, few large requests; near, no more of a row group in memory than is being decoded.
        buffer_size = 0 if remote else _BUFFER_BYTES
        file = pq.ParquetFile(
            raw, pre_buffer=remote, buffer_size=buffer_size, page_checksum_verification=True
        )
        return OpenParquet(uri, raw, file)

    def _pieces(
        self, unit: Unit, schema: pa.Schema, columns: list[str], batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        shard = unit.shard
        opened: OpenParquet | None = None
        groups: set[int] | None = None
        start = 0
        for group, block in enumerate(shard.blocks):
            stop = start + block.num_rows
            low, high = max(start, unit.start), min(stop, unit.stop)
            if low < high:
                key = (shard.uri, shard.version, group, tuple(columns), batch_rows)
                cursor = self._kept_cursor(key, low)
                if cursor is None:
                    opened = opened or self._checked(shard, columns)
                    groups = self._matching(unit, schema, opened) if groups is None else groups
                    if group in groups:
                        cursor = Cursor(opened, group, columns, first=start, batch_rows=batch_rows)
                if cursor is not None:
                    yield from cursor.take(low, high)
                    self._keep(key, cursor, until=stop)
            start = stop

    def _checked(self, shard: Shard, columns: Sequence[str]) -> OpenParquet:
        opened = self._open(shard.uri, shard.version)
        missing = [name for name in columns if name not in opened.file.schema_arrow.names]
        if missing:
            raise DataError(f"column {missing[0]!r} is missing", where=shard.uri)
        return opened

    def _matching(self, unit: Unit, schema: pa.Schema, opened: OpenParquet) -> set[int]:
        """Return the row groups whose statistics do not rule out `where`."""
        shard, where = unit.shard, self.selection.where
        every = set(range(len(shard.blocks)))
        if where is None or not where.may_prune(schema):
            return every
        import pyarrow.dataset as ds  # late: it imports pandas where that is installed

        folders = partition_guarantee(shard, schema) if shard.partition else None
        fragment = ds.ParquetFileFormat().make_fragment(opened.raw, partition_expression=folders)
        try:
            kept = fragment.subset(filter=where.bind(schema), schema=schema)
        except pa.ArrowException:
            return every  # a bound that does not fit the plan's wider type: the rows will tell
        return {group.id for group in kept.row_groups}

    def _kept_cursor(self, key: tuple[Any, ...], low: int) -> Cursor | None:
        """Take the cursor that an earlier unit of the same row group has left, unless it is past `low`."""
        with self._lock:
            cursor = self._kept.get(key)
            return self._kept.pop(key) if cursor is not None and cursor.at <= low else None

    def _keep(self, key: tuple[Any, ...], cursor: Cursor, *, until: int) -> None:
        """Keep a cursor that has rows left, for the next unit: it need not decode the first ones again."""
        if cursor.at < until:
            with self._lock:
                self._kept[key] = cursor
                while len(self._kept) > _KEPT_CURSORS:
                    self._kept.popitem(last=False)


def _check_text(chunk: Chunk) -> None:
    """Raise DataError for a text that is not UTF-8. Nobody checked it when the file was written, and a
    part that holds it could not be read by others."""
    for name, column in zip(chunk.rows.schema.names, chunk.rows.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            row = int(chunk.numbers[_first_bad(column)])
            raise DataError(
                f"column {name!r} holds a text that is not UTF-8",
                where=f"{chunk.unit.shard.uri} row {row}",
                hint="write the column anew, as UTF-8 or as binary; or leave the row out by input.where",
            ) from error


def _first_bad(column: pa.Array) -> int:
    """Return the position of the first value that is not valid."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            column.slice(low, middle - low).validate(full=True)
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low


@contextlib.contextmanager
def _named(uri: str) -> Iterator[None]:
    """Name the file in whatever pyarrow finds wrong with it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"not a readable Parquet file: {text}",
            where=uri,
            hint="write the file anew, or leave it out of input.path",
        ) from error
