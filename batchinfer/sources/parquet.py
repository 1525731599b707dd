"""Parquet input: footers at plan time; only the needed columns and row groups when reading."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.data import Block, Chunk, Entry, Shard, Unit
from batchinfer.errors import BatchinferError, DataError
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.parquet_rows import Cursor, OpenParquet
from batchinfer.sources.select import Selection, partition_guarantee

_SUFFIXES = (".parquet", ".pq", ".parq")
_KEPT_CURSORS = 2
_FILES = 4
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
        self._files: OrderedDict[tuple[str, str], Future[OpenParquet]] = OrderedDict()
        self._opener: ThreadPoolExecutor | None = None
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
            texts = [name for name in columns if not pa.types.is_primitive(schema.field(name).type)]
            for chunk in self.selection.chunks(unit, pieces, schema=schema, columns=columns):
                _check_text(chunk, texts)
                yield chunk

    def _open(self, uri: str, version: str) -> OpenParquet:
        raw = self._inputs.store(uri).open(uri, version=version)
        # Of a near file, or one that is told what will be read, no more is in memory than is being decoded.
        # Of any other a row group at once, in few requests.
        buffered = "://" in uri and not hasattr(raw, "expect")
        file = pq.ParquetFile(
            raw,
            pre_buffer=buffered,
            buffer_size=0 if buffered else _BUFFER_BYTES,
            page_checksum_verification=True,
        )
        return OpenParquet(uri, raw, file)

    def ahead(self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str]) -> None:
        """Open the file of a unit that will be read soon, and begin to fetch, where it is far away."""
        if "://" not in unit.shard.uri or not self.selection.may_match(unit.shard, schema):
            return
        if not any(start == unit.start for _, start, _, _ in _groups(unit)):
            return  # the unit before it leaves a cursor
        with self._lock:
            self._opener = self._opener or ThreadPoolExecutor(_FILES, "open")
            self._opener.submit(self._begin, unit, schema, columns)

    def _begin(self, unit: Unit, schema: pa.Schema, columns: Sequence[str]) -> None:
        """Open a file, and begin to fetch the first row group of a unit. Its reader meets what fails."""
        with contextlib.suppress(BatchinferError, pa.ArrowException, OSError, ValueError):
            opened = self._file(unit.shard)
            groups = self._matching(unit, schema, opened)
            for group, _, low, high in _groups(unit):
                if low < high and group in groups:
                    opened.expect(group, self.selection.file_columns(columns, unit.shard))
                    return

    def close(self) -> None:
        """Forget what is open."""
        with self._lock:
            self._kept.clear()
            self._files.clear()
            opener, self._opener = self._opener, None
        if opener is not None:
            opener.shutdown(cancel_futures=True)

    def _file(self, shard: Shard) -> OpenParquet:
        """Open a file, or share one that is open, if it is far away: opening takes two requests."""
        if "://" not in shard.uri:
            return self._open(shard.uri, shard.version)
        key = (shard.uri, shard.version)
        with self._lock:
            known = self._files.get(key)
            opening = self._files[key] = known or Future()
            self._files.move_to_end(key)
            while len(self._files) > _FILES:
                self._files.popitem(last=False)
        if known is None:
            try:
                opening.set_result(self._open(shard.uri, shard.version))
            except BaseException as error:  # noqa: BLE001 - raised below, and to whoever waits
                opening.set_exception(error)
                with self._lock:
                    self._files.pop(key, None)
        return opening.result()

    def _pieces(
        self, unit: Unit, schema: pa.Schema, columns: list[str], batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        shard = unit.shard
        opened: OpenParquet | None = None
        groups: set[int] | None = None
        parts = [part for part in _groups(unit) if part[2] < part[3]]
        for at, (group, start, low, high) in enumerate(parts):
            key = (shard.uri, shard.version, group, tuple(columns), batch_rows)
            cursor = self._kept_cursor(key, low)
            if cursor is None:
                opened = opened or self._checked(shard, columns)
                groups = self._matching(unit, schema, opened) if groups is None else groups
                if group in groups:
                    for following, *_ in parts[at : at + 2]:
                        if following in groups:
                            opened.expect(following, columns)
                    cursor = Cursor(opened, group, columns, first=start, batch_rows=batch_rows)
            if cursor is not None:
                yield from cursor.take(low, high)
                self._keep(key, cursor, until=start + shard.blocks[group].num_rows)

    def _checked(self, shard: Shard, columns: Sequence[str]) -> OpenParquet:
        opened = self._file(shard)
        there = set(opened.file.schema_arrow.names)
        missing = [name for name in columns if name not in there]
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


def _groups(unit: Unit) -> Iterator[tuple[int, int, int, int]]:
    """Yield each row group of a unit's file: its number, its first row, and its rows [low, high) that are in
    the unit."""
    start = 0
    for group, block in enumerate(unit.shard.blocks):
        yield group, start, max(start, unit.start), min(start + block.num_rows, unit.stop)
        start += block.num_rows


def _check_text(chunk: Chunk, columns: Sequence[str]) -> None:
    """Raise DataError for a text that is not UTF-8. Nobody checked it when the file was written, and a
    part that holds it could not be read by others."""
    for name in columns:
        column = chunk.rows[name]
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
