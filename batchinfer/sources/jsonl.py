"""JSON Lines input: one object per line, plain or compressed; types from the first lines or the job."""

from __future__ import annotations

import codecs
import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.json

from batchinfer import tensors
from batchinfer.data import Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.drift import INFERRED
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import TextOptions
from batchinfer.sources.select import Selection
from batchinfer.sources.text_blocks import Dialect, first_bad, scan
from batchinfer.sources.text_streams import BadRecordError, Streams, named, read_head

_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst")
_SAMPLE_BYTES = 4 * 1024 * 1024
_LINES = Dialect(blank=b" \t\r\n")
_VALUE = re.compile(r",? couldn't parse:.*", re.DOTALL)


class JsonlOptions(TextOptions):
    """JSON Lines files."""

    format: Literal["jsonl"] = "jsonl"


class JsonlSource:
    """Reads JSON Lines files. Types are guessed from the first 4 MiB of each file and hold for all."""

    Options = JsonlOptions

    def __init__(self, options: JsonlOptions) -> None:
        self._inputs = Inputs(options, _SUFFIXES)
        self._streams = Streams()
        self._types = {name: tensors.parse_type(text) for name, text in options.types.items()}
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List the files."""
        return self._inputs.entries()

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Count the lines of a file, and guess its types from the first 4 MiB."""
        store = self._inputs.store(entry.uri)
        with named(entry.uri, "JSON Lines"):
            sample = read_head(store, entry.uri, version=entry.version, size=_SAMPLE_BYTES)
            start = len(codecs.BOM_UTF8) if sample.startswith(codecs.BOM_UTF8) else 0
            blocks = scan(store, entry.uri, version=entry.version, start=start, dialect=_LINES)
        if len(sample) == _SAMPLE_BYTES:
            sample = sample[: sample.rfind(b"\n") + 1]
        shard = self._inputs.shard(entry, index=index, blocks=blocks)
        return shard, self._infer(sample[start:], entry.uri)

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's rows; a column that a line lacks is null."""
        if not self.selection.may_match(unit.shard, schema):
            return
        names = self.selection.file_columns(columns, unit.shard)
        wanted = pa.schema([schema.field(name) for name in names])
        store = self._inputs.store(unit.shard.uri)
        unchanged = self._inputs.unchanged(unit.shard.uri, unit.shard.version)
        with unchanged, named(unit.shard.uri, "JSON Lines"):
            parse = functools.partial(_parse, schema=wanted)
            pieces = self._streams.read_blocks(store, unit, parse, batch_rows=batch_rows)
            yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _infer(self, sample: bytes, uri: str) -> pa.Schema:
        found = pa.schema([])
        if sample.strip():
            try:
                found = _parse(sample, schema=None).schema
            except BadRecordError as bad:
                raise DataError(bad.problem, where=f"{uri}:{bad.line + 1}", hint=bad.hint) from bad
        types = {field.name: field.type for field in found} | self._types
        return pa.schema(types.items(), metadata={INFERRED: "jsonl"})


def _parse(data: bytes, *, schema: pa.Schema | None) -> pa.RecordBatch:
    """Parse whole lines. Raises BadRecordError."""
    if not _is_text(data):
        line = first_bad(data, _LINES, _is_text)
        raise BadRecordError("the line is not UTF-8", line=line, hint="convert the file to UTF-8")
    try:
        table = _table(data, schema)
    except pa.ArrowException as error:
        raise _bad_line(data, schema, str(error)) from error
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _table(data: bytes, schema: pa.Schema | None) -> pa.Table:
    # One block: the reader would otherwise cut at its own size, and a long line could not fit.
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    if schema is None:
        return pa.json.read_json(io.BytesIO(data), reading)
    # A column of nothing gives the rows their number where no column is wanted.
    read = [pa.field(field.name, _readable(field.type)) for field in schema] or [pa.field("\0", pa.null())]
    options = pa.json.ParseOptions(explicit_schema=pa.schema(read), unexpected_field_behavior="ignore")
    return pa.json.read_json(io.BytesIO(data), reading, options)


def _readable(type_: pa.DataType) -> pa.DataType:
    """Return what the parser can make of the text, to be cast to the type then."""
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_readable(type_.value_type))
    if pa.types.is_float16(type_):
        return pa.float32()
    return pa.string() if pa.types.is_date(type_) else type_


def _is_text(data: bytes) -> bool:
    """Tell whether bytes are UTF-8, without copying them."""
    offsets = pa.array([0, len(data)], pa.int64()).buffers()[1]
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)])
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _bad_line(data: bytes, schema: pa.Schema | None, said: str) -> BadRecordError:
    """Find the line that does not parse, and say what is wrong with it, without its content."""

    def is_good(part: bytes) -> bool:
        try:
            _table(part, schema)
        except pa.ArrowException:
            return not part.strip()
        return True

    at = first_bad(data, _LINES, is_good)
    line = data.split(b"\n", at + 1)[at]
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        return BadRecordError(f"not a JSON object: {error}", line=at)
    if not isinstance(value, dict):
        return BadRecordError(f"must be a JSON object, is a {type(value).__name__}", line=at)
    said = _VALUE.sub("", said.removeprefix("JSON parse error: "))
    said = re.sub(r" in row \d+$", "", said)
    return BadRecordError(
        f"the line does not fit the lines before: {said}",
        line=at,
        hint="declare the column's type, as in input.types: {price: float64}",
    )
