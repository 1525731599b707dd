"""Arrow IPC input, files and streams (.arrow, .feather). What comes from elsewhere is validated first."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.ipc

from batchinfer.data import Block, Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.arrow_sizes import MAGIC, decoded_sizes
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.select import Selection

_SUFFIXES = (".arrow", ".arrows", ".feather", ".ipc")
_FEATHER_1 = b"FEA1"
_MAX_BATCH_BYTES = 512 * 1024 * 1024
_MOST_INFLATED = 8


class ArrowOptions(SourceOptions):
    """Arrow IPC files."""

    format: Literal["arrow"] = "arrow"


class ArrowSource:
    """Reads Arrow IPC files and streams. Of a file, only the columns that are asked for are read."""

    Options = ArrowOptions

    def __init__(self, options: ArrowOptions) -> None:
        self._inputs = Inputs(options, _SUFFIXES)
        self._lock = threading.Lock()
        self._last: tuple[tuple[Any, ...], pa.RecordBatch] | None = None
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return self._inputs.entries()

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Count the rows of each record batch, by one of the columns."""
        with _named(entry.uri), self._open(entry.uri, entry.version) as raw:
            schema = _schema(raw)
            twice = [name for name, count in Counter(schema.names).items() if count > 1]
            if twice:
                raise DataError(f"column {twice[0]!r} stands in the file more than once", where=entry.uri)
            rows = [batch.num_rows for batch in _batches(raw, entry, _cheapest(schema))]
        row_bytes = entry.size_bytes / max(sum(rows), 1)
        blocks = tuple(Block(num_rows=count, num_bytes=int(count * row_bytes)) for count in rows)
        return self._inputs.shard(entry, index=index, blocks=blocks), schema.remove_metadata()

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows, record batch by record batch."""
        if not self.selection.may_match(unit.shard, schema):
            return
        wanted = self.selection.file_columns(columns, unit.shard)
        with self._inputs.unchanged(unit.shard.uri, unit.shard.version), _named(unit.shard.uri):
            pieces = self._pieces(unit, wanted, batch_rows)
            yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _open(self, uri: str, version: str) -> contextlib.closing[Any]:
        return contextlib.closing(self._inputs.store(uri).open(uri, version=version))

    def _pieces(
        self, unit: Unit, columns: list[str], batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = 0
        for at, block in enumerate(unit.shard.blocks):
            low, high = max(start, unit.start), min(start + block.num_rows, unit.stop)
            if low < high:
                batch = self._batch(unit.shard, at, columns)
                for row in range(low, high, batch_rows):
                    yield row, batch.slice(row - start, min(batch_rows, high - row))
            start += block.num_rows

    def _batch(self, shard: Shard, at: int, columns: list[str]) -> pa.RecordBatch:
        """Return some columns of a record batch. The last one is kept: its next rows are the next unit's."""
        key = (shard.uri, shard.version, at, tuple(columns))
        with self._lock:
            if self._last is not None and self._last[0] == key:
                return self._last[1]
        with self._open(shard.uri, shard.version) as raw:
            schema = _schema(raw)
            missing = [name for name in columns if name not in schema.names]
            if missing:
                raise DataError(f"column {missing[0]!r} is missing", where=shard.uri)
            fields = [schema.get_field_index(name) for name in columns]
            batch = next(_batches(raw, shard, fields or _cheapest(schema), first=at))
        # Offsets in a file from elsewhere are not to be trusted.
        batch.validate(full=True)
        with self._lock:
            self._last = (key, batch)
        return batch


def _is_file(raw: Any) -> bool:
    raw.seek(0)
    start = raw.read(len(MAGIC))
    raw.seek(0)
    if start.startswith(_FEATHER_1):
        raise pa.ArrowInvalid("Feather version 1; write it anew with a current pyarrow")
    return bool(start == MAGIC)


def _schema(raw: Any) -> pa.Schema:
    return (pa.ipc.open_file(raw) if _is_file(raw) else pa.ipc.open_stream(raw)).schema


def _batches(raw: Any, file: Entry | Shard, fields: list[int], *, first: int = 0) -> Iterator[pa.RecordBatch]:
    """Yield record batches from `first` on, with some of the columns, by their positions.

    Raises DataError for one that would decode to more than 512 MiB and eight times its file.
    """
    options, is_file = pa.ipc.IpcReadOptions(included_fields=fields), _is_file(raw)
    sizes = decoded_sizes(raw, _schema(raw), fields, is_file=is_file, first=first)
    if is_file:
        reader = pa.ipc.open_file(raw, options=options)
        for at in range(first, reader.num_record_batches):
            _check_size(next(sizes, None), at, file)
            yield reader.get_batch(at)
        return
    raw.seek(0)
    stream = pa.ipc.open_stream(raw, options=options)
    for at in itertools.count():
        size = next(sizes, None)
        if size is None:
            return
        # What comes before the first is decoded as well.
        _check_size(size, at, file)
        batch = stream.read_next_batch()
        if at >= first:
            yield batch


def _check_size(num_bytes: int | None, at: int, file: Entry | Shard) -> None:
    if num_bytes is None:
        raise pa.ArrowInvalid(f"record batch {at} is not where the footer says")
    if num_bytes > max(_MAX_BATCH_BYTES, _MOST_INFLATED * file.size_bytes):
        raise DataError(
            f"record batch {at} decodes to {num_bytes:,} bytes, from a file of {file.size_bytes:,}",
            where=file.uri,
            hint="the file may be a decompression bomb; if it is not, write smaller record batches",
        )


def _cheapest(schema: pa.Schema) -> list[int]:
    """Return the position of a column of numbers, if there is one, to count rows by."""
    fixed = [at for at, field in enumerate(schema) if pa.types.is_primitive(field.type)]
    return (fixed or [0])[:1] if len(schema) else []


@contextlib.contextmanager
def _named(uri: str) -> Iterator[None]:
    """Name the file in whatever pyarrow finds wrong with it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"not a readable Arrow IPC file: {error}",
            where=uri,
            hint="write the file anew, or leave it out of input.path",
        ) from error
