"""JSON Lines to columns: types by guess or as planned, and what is wrong with a line that does not parse."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from batchinfer.sources.column_types import wider
from batchinfer.sources.text_blocks import Dialect, first_bad
from batchinfer.sources.text_streams import BadRecordError

LINES = Dialect(blank=b" \t\r\n")
_GUESS_BYTES = 32 * 1024
_MOST_KEYS = 10_000
_DEEPEST = 200
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_VALUE = re.compile(r",? couldn't parse:.*", re.DOTALL)
_DECLARE = "declare the column's type, as in input.types: {price: float64}"


def guess_types(sample: bytes) -> dict[str, pa.DataType]:
    """Guess types, some lines at a time: the parser takes memory for every line times every key, and
    where the keys are data, as in {"user-17": 1}, each line has new ones. Raises BadRecordError."""
    types: dict[str, pa.DataType] = {}
    start = line = 0
    while start < len(sample):
        stop = sample.find(b"\n", start + _GUESS_BYTES) + 1 or len(sample)
        piece = sample[start:stop]
        if piece.strip():
            types = _wider_types(types, piece, line)
        start, line = stop, line + piece.count(b"\n")
    return types


def _wider_types(types: dict[str, pa.DataType], piece: bytes, line: int) -> dict[str, pa.DataType]:
    """Return the types that the lines so far and those of a piece, which begins at `line`, all fit."""
    try:
        _check_depth(piece)
        found = _types_in(piece)
    except BadRecordError as bad:
        raise BadRecordError(bad.problem, line=line + bad.line, hint=bad.hint) from bad
    both = {name: wider(types.get(name, type_), type_, inferred="jsonl") for name, type_ in found.items()}
    misfit = next((name for name, type_ in both.items() if type_ is None), None)
    if misfit is not None:
        raise _misfit(misfit, types[misfit], piece, line)
    types = {**types, **both}
    if sum(_num_leaves(type_) for type_ in types.values()) > _MOST_KEYS:
        raise BadRecordError(
            f"the lines up to here have more than {_MOST_KEYS:,} different keys",
            line=line,
            hint='where keys are data, write them as values: [{"key": "user-17", "value": 1}]',
        )
    return types


def _check_depth(piece: bytes) -> None:
    """Refuse lines that are nested so deeply that the parser's stack would overflow, which ends the
    process. Raises BadRecordError."""
    values = np.frombuffer(piece, np.uint8)
    opens = (values == ord("[")) | (values == ord("{"))
    starts = np.flatnonzero(np.r_[True, values[:-1] == ord("\n")])
    # Few lines have so many brackets, deep or not.
    for line in np.flatnonzero(np.add.reduceat(opens, starts) > _DEEPEST):
        start = int(starts[line])
        bare = np.frombuffer(_STRING.sub(b"", piece[start : piece.find(b"\n", start)]), np.uint8)
        ups = np.isin(bare, [ord("["), ord("{")]).astype(np.int64)
        downs = np.isin(bare, [ord("]"), ord("}")]).astype(np.int64)
        if np.cumsum(ups - downs).max(initial=0) > _DEEPEST:
            raise BadRecordError("the line is nested too deeply", line=int(line))


def _misfit(name: str, before: pa.DataType, piece: bytes, line: int) -> BadRecordError:
    """Find the line of a piece in which a key has another type than in the pieces before."""

    def is_good(part: bytes) -> bool:
        type_ = _types_in(part).get(name, pa.null()) if part.strip() else pa.null()
        return wider(before, type_, inferred="jsonl") is not None

    return BadRecordError(
        f"the line does not fit the lines before: {name!r} was {before} there",
        line=line + first_bad(piece, LINES, is_good),
        hint=_DECLARE,
    )


def _types_in(piece: bytes) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in parse(piece, schema=None).schema}


def _num_leaves(type_: pa.DataType) -> int:
    return sum(_num_leaves(type_.field(at).type) for at in range(type_.num_fields)) or 1


def parse(data: bytes, *, schema: pa.Schema | None) -> pa.RecordBatch:
    """Parse whole lines. Raises BadRecordError."""
    if not _is_text(data):
        line = first_bad(data, LINES, _is_text)
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

    at = first_bad(data, LINES, is_good)
    line = data.split(b"\n", at + 1)[at]
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        return BadRecordError(f"not a JSON object: {error}", line=at)
    except RecursionError:
        return BadRecordError("the line is nested too deeply", line=at)
    if not isinstance(value, dict):
        return BadRecordError(f"must be a JSON object, is a {type(value).__name__}", line=at)
    said = _VALUE.sub("", said.removeprefix("JSON parse error: "))
    said = re.sub(r" in row \d+$", "", said)
    return BadRecordError(
        f"the line does not fit the lines before: {said}",
        line=at,
        hint=_DECLARE,
    )
