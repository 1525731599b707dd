"""Parquet input: footers at plan time; only the needed columns and row groups when reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchinfer.data import Block, Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.listing import list_inputs, shard_of, store_of
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.select import Selection

_SUFFIXES = (".parquet", ".pq", ".parq")
_PROBED_ROWS = 16
_PIECE_BYTES = 32 * 1024 * 1024
_MAX_PIECE_BYTES = 512 * 1024 * 1024


class ParquetOptions(SourceOptions):
    """Parquet files."""

    format: Literal["parquet"] = "parquet"


class ParquetSource:
    """Reads Parquet files."""

    Options = ParquetOptions

    def __init__(self, options: ParquetOptions) -> None:
        self._options = options
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return list_inputs(self._options, _SUFFIXES)

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Read a footer."""
        with _named(entry.uri):
            file = pq.ParquetFile(store_of(self._options, entry.uri).open(entry.uri, version=entry.version))
        footer = file.metadata
        groups = (footer.row_group(at) for at in range(footer.num_row_groups))
        blocks = tuple(Block(num_rows=g.num_rows, num_bytes=g.total_byte_size) for g in groups)
        shard = shard_of(self._options, entry, index=index, blocks=blocks)
        return shard, file.schema_arrow.remove_metadata()

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows, row group by row group."""
        pieces = self._pieces(unit, schema, self.selection.file_columns(columns, unit), batch_rows)
        yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _pieces(
        self, unit: Unit, schema: pa.Schema, columns: list[str], batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        shard = unit.shard
        store = store_of(self._options, shard.uri)
        with _named(shard.uri):
            file = pq.ParquetFile(
                store.open(shard.uri, version=shard.version), pre_buffer=True, page_checksum_verification=True
            )
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"column {missing[0]!r} is missing", where=shard.uri)
            start = 0
            wanted = self._matching(unit, schema)
            for group, block in enumerate(shard.blocks):
                stop = start + block.num_rows
                if stop > unit.start and start < unit.stop and group in wanted:
                    rows = _safe_rows(file, group, columns, batch_rows)
                    batches = file.iter_batches(batch_size=rows, row_groups=[group], columns=columns)
                    yield from _within(unit, batches, first=start)
                start = stop

    def _matching(self, unit: Unit, schema: pa.Schema) -> set[int]:
        """Return the row groups whose statistics do not rule out `where`."""
        every = set(range(len(unit.shard.blocks)))
        where = self.selection.where
        if where is None or any(name in unit.shard.partition for name in where.columns):
            return every
        uri = unit.shard.uri
        fragment = ds.ParquetFileFormat().make_fragment(store_of(self._options, uri).open(uri))
        try:
            kept = fragment.subset(filter=where.expression, schema=schema)
        except pa.ArrowException:
            return every  # statistics of another type than the plan's: read, then filter
        return {group.id for group in kept.row_groups}


def _within(unit: Unit, batches: Any, *, first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the rows of a row group that belong to the unit, with the number of the first."""
    at = first
    for batch in batches:
        if batch.nbytes > _MAX_PIECE_BYTES:
            raise DataError(
                f"{batch.num_rows} rows from row {at} decode to {batch.nbytes:,} bytes, above the limit of "
                f"{_MAX_PIECE_BYTES:,}",
                where=unit.shard.uri,
                hint="the file may be a decompression bomb; if it is not, store large values in files",
            )
        low, high = max(at, unit.start), min(at + batch.num_rows, unit.stop)
        if low < high:
            yield low, batch.slice(low - at, high - low)
        at += batch.num_rows
        if at >= unit.stop:
            return


def _safe_rows(file: Any, group: int, columns: list[str], batch_rows: int) -> int:
    """Return how many rows decode to about 32 MiB, by decoding a few: the footer's sizes can lie."""
    probe = next(file.iter_batches(batch_size=_PROBED_ROWS, row_groups=[group], columns=columns), None)
    if probe is None or not probe.num_rows:
        return batch_rows
    row_bytes = max(int(probe.nbytes) // int(probe.num_rows), 1)
    return max(1, min(batch_rows, _PIECE_BYTES // row_bytes))


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
