"""Arrow IPC input: files (.arrow, .feather) with a footer. Decoded in workers, and validated there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.ipc

from batchinfer.data import Block, Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.listing import list_inputs, shard_of, store_of
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.select import Selection

_SUFFIXES = (".arrow", ".feather", ".ipc")


class ArrowOptions(SourceOptions):
    """Arrow IPC files."""

    format: Literal["arrow"] = "arrow"


class ArrowSource:
    """Reads Arrow IPC files."""

    Options = ArrowOptions

    def __init__(self, options: ArrowOptions) -> None:
        self._options = options
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return list_inputs(self._options, _SUFFIXES)

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Count the rows of each record batch."""
        with _named(entry.uri):
            file = pa.ipc.open_file(store_of(self._options, entry.uri).open(entry.uri, version=entry.version))
            batches = (file.get_batch(at) for at in range(file.num_record_batches))
            blocks = tuple(Block(num_rows=batch.num_rows, num_bytes=batch.nbytes) for batch in batches)
        shard = shard_of(self._options, entry, index=index, blocks=blocks)
        return shard, file.schema.remove_metadata()

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows, record batch by record batch."""
        pieces = self._pieces(unit, self.selection.file_columns(columns, unit), batch_rows)
        yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _pieces(
        self, unit: Unit, columns: list[str], batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        shard = unit.shard
        with _named(shard.uri):
            file = pa.ipc.open_file(store_of(self._options, shard.uri).open(shard.uri, version=shard.version))
            start = 0
            for at, block in enumerate(shard.blocks):
                low, high = max(start, unit.start), min(start + block.num_rows, unit.stop)
                if low < high:
                    batch = file.get_batch(at).select(columns)
                    # Offsets in a file from elsewhere are not to be trusted.
                    batch.validate(full=True)
                    for row in range(low, high, batch_rows):
                        yield row, batch.slice(row - start, min(batch_rows, high - row))
                start += block.num_rows


@contextlib.contextmanager
def _named(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"not a readable Arrow IPC file: {error}", where=uri) from error
