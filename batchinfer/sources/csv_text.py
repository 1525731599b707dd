"""CSV input as RFC 4180 writes it: quoted fields may hold newlines; types from the first rows or the job."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import Chunk, Entry, Shard, Unit
from batchinfer.errors import ContractError, DataError
from batchinfer.options import field_validator
from batchinfer.sources.csv_records import CsvParser
from batchinfer.sources.drift import INFERRED
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import TextOptions
from batchinfer.sources.select import Selection
from batchinfer.sources.text_blocks import read_head, scan
from batchinfer.sources.text_streams import BadRecordError, Streams, named

_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".csv.zst", ".tsv.gz", ".tsv.zst")
_SAMPLE_BYTES = 4 * 1024 * 1024


class CsvOptions(TextOptions):
    """CSV files."""

    format: Literal["csv"] = "csv"

    delimiter: str | None = None
    """One character; by default a comma, or a tab for .tsv."""

    quote: str | None = '"'
    """The character around fields that hold delimiters or newlines; null where nothing is quoted."""

    header: bool = True
    """The first record names the columns. Otherwise they are f0, f1, …"""

    null_values: tuple[str, ...] = ("",)
    """What stands for null where it is not quoted, such as ["", NA]."""

    @field_validator("delimiter", "quote")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n"):
            raise ValueError(f"must be one ASCII character, got {value!r}")
        return value


class CsvSource:
    """Reads CSV files. Types are guessed from the first 4 MiB of each file and hold for all."""

    Options = CsvOptions

    def __init__(self, options: CsvOptions) -> None:
        self._options = options
        self._inputs = Inputs(options, _SUFFIXES)
        self._streams = Streams()
        self._headers: dict[tuple[str, str], list[str]] = {}
        self._types = {name: tensors.parse_type(text) for name, text in options.types.items()}
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return self._inputs.entries()

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Count the records of a file, and guess its types from the first 4 MiB."""
        store, parser = self._inputs.store(entry.uri), self._parser(entry.uri)
        with named(entry.uri, "CSV"):
            sample = self._head(entry.uri, entry.version, records=2)
            start, names = parser.names(sample, where=entry.uri)
            blocks = scan(store, entry.uri, version=entry.version, start=start, dialect=parser.dialect)
        shard = self._inputs.shard(entry, index=index, blocks=blocks)
        return shard, self._infer(sample[start:], names, entry.uri, line=1 + sample.count(b"\n", 0, start))

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows."""
        if not self.selection.may_match(unit.shard, schema):
            return
        uri = unit.shard.uri
        with self._inputs.unchanged(uri, unit.shard.version), named(uri, "CSV"):
            names = self._names(uri, unit.shard.version)
            wanted = self.selection.file_columns(columns, unit.shard)
            missing = [name for name in wanted if name not in names]
            if missing:
                raise DataError(f"column {missing[0]!r} is missing", where=uri)
            # Some column must be read to count the rows.
            types = {name: schema.field(name).type for name in wanted} or {names[0]: pa.binary()}
            parse = functools.partial(self._parser(uri).parse, names=names, types=types)
            pieces = self._streams.read_blocks(self._inputs.store(uri), unit, parse, batch_rows=batch_rows)
            yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _parser(self, uri: str) -> CsvParser:
        tab = ".tsv" in uri.rpartition("/")[2].lower()
        return CsvParser(
            delimiter=self._options.delimiter or ("\t" if tab else ","),
            quote=self._options.quote,
            header=self._options.header,
            null_values=self._options.null_values,
        )

    def _names(self, uri: str, version: str) -> list[str]:
        """Return the columns of a file, by its header, which is read once."""
        key = (uri, version)
        if key not in self._headers:
            sample = self._head(uri, version, records=1)
            self._headers[key] = self._parser(uri).names(sample, where=uri)[1]
        return self._headers[key]

    def _head(self, uri: str, version: str, *, records: int) -> bytes:
        """Return the first records of a file, 4 MiB or so many."""
        return read_head(
            self._inputs.store(uri),
            uri,
            version=version,
            size=_SAMPLE_BYTES,
            dialect=self._parser(uri).dialect,
            records=records,
        )

    def _infer(self, sample: bytes, names: list[str], uri: str, *, line: int) -> pa.Schema:
        """Guess types from whole records. `line` is where they begin."""
        unknown = sorted(self._types.keys() - set(names))
        if unknown:
            raise ContractError(
                f"input.types names column {unknown[0]!r}, which is not in the file",
                where=uri,
                hint=f"there are {', '.join(names)}",
            )
        found = pa.schema([(name, pa.null()) for name in names])
        if sample.strip(b"\r\n"):
            try:
                found = self._parser(uri).parse(sample, names=names, types=self._types, only=False).schema
            except BadRecordError as bad:
                raise DataError(bad.problem, where=f"{uri}:{line + bad.line}", hint=bad.hint) from bad
        for field in found:
            if pa.types.is_binary(field.type) and field.name not in self._types:
                raise DataError(
                    f"column {field.name!r} is not UTF-8",
                    where=uri,
                    hint=f"convert the file, or read bytes: input.types: {{{field.name}: binary}}",
                )
        types = {field.name: self._types.get(field.name, field.type) for field in found}
        return pa.schema(types.items(), metadata={INFERRED: "csv"})
