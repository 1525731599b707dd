"""CSV input as RFC 4180 writes it: quoted fields may hold newlines; types from the first rows or the job."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv

from batchinfer import tensors
from batchinfer.data import Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.listing import list_inputs, shard_of, store_of
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.select import Selection
from batchinfer.sources.text_blocks import open_text, read_blocks, scan, sliced

_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".csv.zst", ".tsv.gz", ".tsv.zst")
_SAMPLE_BYTES = 4 * 1024 * 1024
_SAMPLE_ROWS = 10_000


class CsvOptions(SourceOptions):
    """CSV files."""

    format: Literal["csv"] = "csv"

    delimiter: str | None = None
    """One character; by default a comma, or a tab for .tsv."""

    header: bool = True
    """The first record names the columns. Otherwise they are f0, f1, …"""

    types: dict[str, str] = {}
    """Types of columns (`zip: string`) where the first rows of a file do not tell."""


class CsvSource:
    """Reads CSV files."""

    Options = CsvOptions

    def __init__(self, options: CsvOptions) -> None:
        self._options = options
        self._types = {name: tensors.parse_type(text) for name, text in options.types.items()}
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return list_inputs(self._options, _SUFFIXES)

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Count the records of a file, and infer its types from the first 10,000."""
        store = store_of(self._options, entry.uri)
        try:
            sample = open_text(store, entry.uri, version=entry.version).read(_SAMPLE_BYTES)
            start = _header_bytes(sample) if self._options.header else 0
            stream = open_text(store, entry.uri, version=entry.version)
            stream.read(start)
            blocks = scan(stream, start=start, quoted=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a readable CSV file: {error}", where=entry.uri) from error
        shard = shard_of(self._options, entry, index=index, blocks=blocks)
        return shard, self._infer(sample, entry.uri)

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows."""
        uri = unit.shard.uri
        store = store_of(self._options, uri)
        sample = open_text(store, uri, version=unit.shard.version).read(_SAMPLE_BYTES)
        file_names = self._parse(sample[: _end_of_first(sample)], uri, sample_only=True).schema.names
        wanted = self.selection.file_columns(columns, unit)
        types = {name: schema.field(name).type for name in wanted}

        def parse(data: bytes, first: int) -> pa.RecordBatch:
            """Parse a block."""
            return self._parse(data, uri, names=file_names, types=types, first=first)

        pieces = sliced(read_blocks(store, unit, parse), batch_rows)
        yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _infer(self, sample: bytes, uri: str) -> pa.Schema:
        whole = sample if len(sample) < _SAMPLE_BYTES else sample[: sample.rfind(b"\n") + 1]
        if not whole.strip():
            raise DataError("the file is empty: it has no header", where=uri)
        schema = self._parse(whole, uri, sample_only=True).schema
        return pa.schema([(field.name, self._types.get(field.name, field.type)) for field in schema])

    def _parse(
        self,
        data: bytes,
        uri: str,
        *,
        names: list[str] | None = None,
        types: dict[str, pa.DataType] | None = None,
        first: int = 0,
        sample_only: bool = False,
    ) -> pa.RecordBatch:
        """Parse whole records. Raises DataError that names the row and what is wrong with it."""
        bad: list[Any] = []

        def on_bad(row: Any) -> str:
            """Remember what was wrong with a record."""
            bad.append(row)
            return "error"

        tab = ".tsv" in uri.rpartition("/")[2].lower()
        delimiter = self._options.delimiter or ("\t" if tab else ",")
        reading = pa.csv.ReadOptions(
            use_threads=False,
            block_size=max(len(data), 1) + 1,
            column_names=names,
            autogenerate_column_names=names is None and not self._options.header,
        )
        parsing = pa.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_bad
        )
        converting = pa.csv.ConvertOptions(
            column_types=types or {},
            include_columns=list(types) if types else None,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        try:
            table = pa.csv.read_csv(io.BytesIO(data), reading, parsing, converting)
        except pa.ArrowException as error:
            problem = str(error)
            if bad:
                problem = f"{bad[0].actual_columns} fields where {bad[0].expected_columns} are expected"
            raise DataError(f"from row {first} on: {problem}", where=uri) from error
        table = table.slice(0, _SAMPLE_ROWS) if sample_only else table
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _header_bytes(sample: bytes) -> int:
    return _end_of_first(sample)


def _end_of_first(sample: bytes) -> int:
    """Return the offset behind the first record: at the first newline outside quotes."""
    inside = False
    for at, char in enumerate(sample):
        if char == ord('"'):
            inside = not inside
        elif char == ord("\n") and not inside:
            return at + 1
    return len(sample)
