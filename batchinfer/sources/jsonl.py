"""JSON Lines input: one object per line, plain or compressed; types from the first lines or the job."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.json

from batchinfer import tensors
from batchinfer.data import Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.listing import list_inputs, shard_of, store_of
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.select import Selection
from batchinfer.sources.text_blocks import open_text, read_blocks, scan, sliced

_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst")
_SAMPLE_BYTES = 4 * 1024 * 1024


class JsonlOptions(SourceOptions):
    """JSON Lines files."""

    format: Literal["jsonl"] = "jsonl"

    types: dict[str, str] = {}
    """Types of columns (`price: float64`) where the first lines of a file do not tell."""


class JsonlSource:
    """Reads JSON Lines files."""

    Options = JsonlOptions

    def __init__(self, options: JsonlOptions) -> None:
        self._options = options
        self._types = {name: tensors.parse_type(text) for name, text in options.types.items()}
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return list_inputs(self._options, _SUFFIXES)

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Count the lines of a file, and infer its types from the first 4 MiB."""
        store = store_of(self._options, entry.uri)
        try:
            blocks = scan(open_text(store, entry.uri, version=entry.version), start=0, quoted=False)
            sample = open_text(store, entry.uri, version=entry.version).read(_SAMPLE_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a readable JSON Lines file: {error}", where=entry.uri) from error
        shard = shard_of(self._options, entry, index=index, blocks=blocks)
        return shard, self._infer(sample, entry)

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows; a column that a line lacks is null."""
        names = self.selection.file_columns(columns, unit)
        wanted = pa.schema([schema.field(name) for name in names])

        def parse(data: bytes, first: int) -> pa.RecordBatch:
            """Parse a block."""
            return _parse(data, wanted, where=unit.shard.uri, first=first)

        pieces = sliced(read_blocks(store_of(self._options, unit.shard.uri), unit, parse), batch_rows)
        yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _infer(self, sample: bytes, entry: Entry) -> pa.Schema:
        whole = sample if len(sample) < _SAMPLE_BYTES else sample[: sample.rfind(b"\n") + 1]
        if not whole.strip():
            return pa.schema(self._types.items())
        schema = _parse(whole, None, where=entry.uri, first=0).schema
        declared = [pa.field(name, type_) for name, type_ in self._types.items()]
        return pa.schema([*(field for field in schema if field.name not in self._types), *declared])


def _parse(data: bytes, schema: pa.Schema | None, *, where: str, first: int) -> pa.RecordBatch:
    """Parse whole lines. Raises DataError that names the row and what is wrong with it."""
    options = None
    if schema is not None:
        options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    # One block: the reader would otherwise cut at its own size, and a long line could not fit.
    reading = pa.json.ReadOptions(use_threads=False, block_size=max(len(data), 1) + 1)
    try:
        table = pa.json.read_json(io.BytesIO(data), reading, options)
    except pa.ArrowException as error:
        row, problem = _bad_line(data, str(error))
        raise DataError(f"row {first + row}: {problem}", where=where) from error
    table = table if schema is None else table.select(schema.names)
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _bad_line(data: bytes, said: str) -> tuple[int, str]:
    """Find the first line that is no JSON object; else what the parser said of types."""
    row = 0
    for line in data.splitlines():
        if not line.strip():
            continue
        try:
            value: Any = json.loads(line)
        except ValueError as error:
            return row, f"not JSON: {error}"
        if not isinstance(value, dict):
            return row, f"must be a JSON object, is {type(value).__name__}"
        row += 1
    return 0, f"types differ between lines: {said}"
