"""CSV input as RFC 4180 writes it: quoted fields may hold newlines; types from the first rows or the job."""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv

from batchinfer import tensors
from batchinfer.data import Chunk, Entry, Shard, Unit
from batchinfer.errors import ContractError, DataError
from batchinfer.options import field_validator
from batchinfer.sources.drift import INFERRED
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import TextOptions
from batchinfer.sources.select import Selection
from batchinfer.sources.text_blocks import (
    BadRecordError,
    Dialect,
    first_bad,
    named,
    open_text,
    read_blocks,
    scan,
)

_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".csv.zst", ".tsv.gz", ".tsv.zst")
_SAMPLE_BYTES = 4 * 1024 * 1024
_VALUE = re.compile(r"In CSV column #(\d+): Row #\d+: (.*?)(: invalid value.*)?", re.DOTALL)


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
    """What stands for null where it is not quoted."""

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
        self._types = {name: tensors.parse_type(text) for name, text in options.types.items()}
        self._dialect = Dialect(blank=b"\r\n", quote=options.quote)
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return self._inputs.entries()

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Count the records of a file, and guess its types from the first 4 MiB."""
        store = self._inputs.store(entry.uri)
        with named(entry.uri, "CSV"):
            sample = self._head(entry.uri, entry.version)
            start, names = self._header(sample, entry.uri)
            blocks = scan(store, entry.uri, version=entry.version, start=start, dialect=self._dialect)
        shard = self._inputs.shard(entry, index=index, blocks=blocks)
        return shard, self._infer(sample[start:], names, entry.uri, line=1 + sample[:start].count(b"\n"))

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows."""
        if not self.selection.may_match(unit.shard, schema):
            return
        uri = unit.shard.uri
        with named(uri, "CSV"):
            _, names = self._header(self._head(uri, unit.shard.version), uri)
            wanted = self.selection.file_columns(columns, unit.shard)
            missing = [name for name in wanted if name not in names]
            if missing:
                raise DataError(f"column {missing[0]!r} is missing", where=uri)
            # Some column must be read to count the rows.
            types = {name: _readable(schema.field(name).type) for name in wanted} or {names[0]: pa.binary()}
            parse = functools.partial(self._parse, uri=uri, names=names, types=types)
            pieces = read_blocks(self._inputs.store(uri), unit, parse, batch_rows=batch_rows)
            yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _head(self, uri: str, version: str) -> bytes:
        with open_text(self._inputs.store(uri), uri, version=version) as stream:
            data: bytes = stream.read(_SAMPLE_BYTES)
        return data

    def _header(self, sample: bytes, uri: str) -> tuple[int, list[str]]:
        """Return where the records begin, and the names of the columns."""
        stops = [0, *self._dialect.edges(sample)[0].tolist(), len(sample)]
        first = next((stop for stop in stops if sample[:stop].strip(b"\r\n")), 0)
        head = sample[:first]
        if not head:
            raise DataError("the file is empty: it has no header", where=uri)
        try:
            table = self._table(head, uri, names=None, types={})
        except pa.ArrowException as error:
            raise DataError(f"the first record cannot be read: {error}", where=f"{uri}:1") from error
        if table.num_rows > (not self._options.header):
            raise DataError(
                "lines end with a carriage return alone", where=uri, hint="convert the line ends to \\n"
            )
        twice = [name for name, count in Counter(table.column_names).items() if count > 1]
        if twice:
            raise DataError(f"the header names column {twice[0]!r} more than once", where=f"{uri}:1")
        unknown = sorted(self._types.keys() - set(table.column_names))
        if unknown:
            raise ContractError(
                f"input.types names column {unknown[0]!r}, which is not in the file",
                where=uri,
                hint=f"there are {', '.join(table.column_names)}",
            )
        return (first if self._options.header else 0), table.column_names

    def _infer(self, sample: bytes, names: list[str], uri: str, *, line: int) -> pa.Schema:
        """Guess types from whole records. `line` is where the sample begins."""
        stops, _ = self._dialect.edges(sample)
        whole = sample if len(sample) < _SAMPLE_BYTES // 2 or not len(stops) else sample[: stops[-1]]
        found = pa.schema([(name, pa.null()) for name in names])
        if whole.strip(b"\r\n"):
            declared = {name: _readable(type_) for name, type_ in self._types.items()}
            try:
                found = self._parse(whole, uri=uri, names=names, types=declared, only=False).schema
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

    def _parse(
        self, data: bytes, *, uri: str, names: list[str], types: Mapping[str, pa.DataType], only: bool = True
    ) -> pa.RecordBatch:
        """Parse whole records, `only` the columns in `types` or all. Raises BadRecordError."""

        def is_good(part: bytes) -> bool:
            try:
                self._table(part, uri, names=names, types=types, only=only)
            except pa.ArrowException:
                return not part.strip(b"\r\n")
            return True

        bad: list[Any] = []
        try:
            table = self._table(data, uri, names=names, types=types, only=only, bad=bad)
        except pa.ArrowException as error:
            line = first_bad(data, self._dialect, is_good)
            raise BadRecordError(
                _problem(str(error), names, bad),
                line=line,
                hint=None if bad else "declare the column's type, as in input.types: {zip: string}",
            ) from error
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)

    def _table(
        self,
        data: bytes,
        uri: str,
        *,
        names: list[str] | None,
        types: Mapping[str, pa.DataType],
        only: bool = False,
        bad: list[Any] | None = None,
    ) -> pa.Table:
        def on_bad(row: Any) -> str:
            if bad is not None:
                bad.append(row)
            return "error"

        tab = ".tsv" in uri.rpartition("/")[2].lower()
        reading = pa.csv.ReadOptions(
            use_threads=False,
            block_size=len(data) + 1,
            column_names=names,
            autogenerate_column_names=names is None and not self._options.header,
        )
        parsing = pa.csv.ParseOptions(
            delimiter=self._options.delimiter or ("\t" if tab else ","),
            quote_char=self._options.quote or False,
            newlines_in_values=True,
            invalid_row_handler=on_bad,
        )
        converting = pa.csv.ConvertOptions(
            column_types=dict(types),
            include_columns=list(types) if only else None,
            null_values=list(self._options.null_values),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        return pa.csv.read_csv(io.BytesIO(data), reading, parsing, converting)


def _readable(type_: pa.DataType) -> pa.DataType:
    """Return what the parser can make of a field, to be cast to the type then."""
    return pa.float32() if pa.types.is_float16(type_) else type_


def _problem(said: str, names: Sequence[str], bad: Sequence[Any]) -> str:
    """Say what is wrong with a record, without its content."""
    if bad:
        return f"{bad[0].actual_columns} fields where {bad[0].expected_columns} are expected"
    if found := _VALUE.fullmatch(said):
        return f"column {names[int(found.group(1))]!r}: {found.group(2)}"
    return said
