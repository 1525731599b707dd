"""CSV records to columns: the parser's settings, and what is wrong with a record that does not parse."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv

from batchinfer.errors import DataError
from batchinfer.sources.text_blocks import Dialect, first_bad
from batchinfer.sources.text_streams import BadRecordError

_FIELDS = re.compile(r"Expected (\d+) columns, got (\d+)")
_CONVERSION = re.compile(r"In CSV column #(\d+): Row #\d+: (.*?)(: invalid value.*)?", re.DOTALL)
_DECLARE = "declare the column's type, as in input.types: {zip: string}"


@dataclass(frozen=True, slots=True)
class CsvParser:
    """Parses whole records. `null_values` stand for null where they are not quoted."""

    delimiter: str
    quote: str | None
    header: bool
    null_values: tuple[str, ...]

    @property
    def dialect(self) -> Dialect:
        """What ends a record."""
        return Dialect(blank=b"\r\n", quote=self.quote)

    def names(self, sample: bytes, *, where: str) -> tuple[int, list[str]]:
        """Return where the records of a file begin, and the names of its columns, by its first bytes.

        Raises DataError for a file without a record, and for one whose header cannot be used.
        """
        stops = itertools.chain(self.dialect.edges(sample)[0], [len(sample)])
        first = next((int(stop) for stop in stops if sample[:stop].strip(b"\r\n")), 0)
        if not first:
            raise DataError("the file is empty: it has no header", where=where)
        try:
            sample[:first].decode()
            table = self._table(sample[:first], names=None)
        except UnicodeDecodeError as error:
            raise DataError(
                "the first record is not UTF-8", where=f"{where}:1", hint="convert the file to UTF-8"
            ) from error
        except pa.ArrowException as error:
            raise DataError("the first record cannot be read", where=f"{where}:1") from error
        if table.num_rows > (0 if self.header else 1):
            raise DataError(
                "lines end with a carriage return alone", where=where, hint="convert the line ends to \\n"
            )
        twice = [name for name, count in Counter(table.column_names).items() if count > 1]
        if twice:
            raise DataError(f"the header names column {twice[0]!r} more than once", where=f"{where}:1")
        return (first if self.header else 0), table.column_names

    def parse(
        self, data: bytes, *, names: list[str], types: Mapping[str, pa.DataType], only: bool = True
    ) -> pa.RecordBatch:
        """Return the columns in `types`, or (not `only`) all, others by guess. Raises BadRecordError."""

        def is_good(part: bytes) -> bool:
            try:
                self._table(part, names=names, types=types, only=only)
            except pa.ArrowException:
                return not part.strip(b"\r\n")
            return True

        try:
            table = self._table(data, names=names, types=types, only=only)
        except pa.ArrowException as error:
            problem, hint = _problem(str(error), names)
            raise BadRecordError(problem, line=first_bad(data, self.dialect, is_good), hint=hint) from error
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)

    def _table(
        self,
        data: bytes,
        *,
        names: list[str] | None,
        types: Mapping[str, pa.DataType] | None = None,
        only: bool = False,
    ) -> pa.Table:
        types = {name: _readable(type_) for name, type_ in (types or {}).items()}
        # One block: the reader would otherwise cut at its own size, and a long record could not fit.
        reading = pa.csv.ReadOptions(
            use_threads=False,
            block_size=len(data) + 1,
            column_names=names,
            autogenerate_column_names=names is None and not self.header,
        )
        parsing = pa.csv.ParseOptions(
            delimiter=self.delimiter,
            quote_char=self.quote or False,
            newlines_in_values=True,
        )
        converting = pa.csv.ConvertOptions(
            column_types=types,
            include_columns=list(types) if only else None,
            null_values=list(self.null_values),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        return pa.csv.read_csv(io.BytesIO(data), reading, parsing, converting)


def _readable(type_: pa.DataType) -> pa.DataType:
    """Return what the parser can make of a field, to be cast to the type then."""
    return pa.float32() if pa.types.is_float16(type_) else type_


def _problem(said: str, names: Sequence[str]) -> tuple[str, str | None]:
    """Say what is wrong with a record, without its content, and the way out."""
    if found := _FIELDS.search(said):
        return f"{found.group(2)} fields where {found.group(1)} are expected", None
    if found := _CONVERSION.fullmatch(said):
        return f"column {names[int(found.group(1))]!r}: {found.group(2)}", _DECLARE
    return "the record cannot be parsed", _DECLARE
