"""JSON Lines input: one object per line, plain or compressed; types from the first lines or the job."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.drift import INFERRED
from batchinfer.sources.jsonl_records import LINES, guess_types, parse
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import TextOptions
from batchinfer.sources.select import Selection
from batchinfer.sources.text_blocks import read_head, scan
from batchinfer.sources.text_streams import BadRecordError, Streams, named

_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst")
_SAMPLE_BYTES = 4 * 1024 * 1024


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
            sample = read_head(store, entry.uri, version=entry.version, size=_SAMPLE_BYTES, dialect=LINES)
            start = len(codecs.BOM_UTF8) if sample.startswith(codecs.BOM_UTF8) else 0
            blocks = scan(store, entry.uri, version=entry.version, start=start, dialect=LINES)
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
            parsed = functools.partial(parse, schema=wanted)
            pieces = self._streams.read_blocks(store, unit, parsed, batch_rows=batch_rows)
            yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    def _infer(self, sample: bytes, uri: str) -> pa.Schema:
        try:
            found = guess_types(sample)
        except BadRecordError as bad:
            raise DataError(bad.problem, where=f"{uri}:{bad.line + 1}", hint=bad.hint) from bad
        return pa.schema((found | self._types).items(), metadata={INFERRED: "jsonl"})
