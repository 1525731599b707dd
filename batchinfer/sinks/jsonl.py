"""JSON Lines parts: one object per row, keys in column order, UTF-8."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa

from batchinfer.config.sections import OutputOptions
from batchinfer.errors import DataError
from batchinfer.row_errors import ERROR_TYPE

_ROWS_AT_ONCE = 4096
_LINE = "#line"
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


class JsonlOptions(OutputOptions):
    """Where results go, as JSON Lines."""

    format: Literal["jsonl"] = "jsonl"


class JsonlSink:
    """Encodes parts as JSON Lines. Bytes become base64, dates ISO 8601, NaN and infinity null."""

    Options = JsonlOptions
    suffix = ".jsonl"

    def __init__(self, options: JsonlOptions) -> None:
        self._options = options

    def begin(self, schema: pa.Schema, metadata: Mapping[str, str]) -> JsonlPart:  # noqa: ARG002 - JSON Lines has no footer
        """Begin a part."""
        return JsonlPart()

    def count(self, data: bytes) -> tuple[int, int]:
        """Count lines, and those with an `_error`."""
        data = bytes(data)  # copies nothing where they are bytes already
        if data and not data.endswith(b"\n"):
            raise DataError("not a complete JSON Lines file: the last line does not end")
        lines = data.splitlines()
        failed = (b'"_error": {' in line and json.loads(line).get("_error") is not None for line in lines)
        return len(lines), sum(failed)

    def footer(self, file: Any) -> Mapping[str, str]:
        """Count lines: JSON Lines say nothing of themselves."""
        num_rows, _ = self.count(bytes(file.read()))
        return {"rows": str(num_rows)}

    def failed_rows(self, file: Any) -> tuple[int, pa.StructArray]:
        """Parse the lines with an `_error`."""
        lines = bytes(file.read()).splitlines()
        try:
            errors = [json.loads(line).get("_error") for line in lines if b'"_error": {' in line]
        except ValueError as error:
            raise DataError(f"not readable as JSON Lines: {error}") from error
        return len(lines), pa.array([error for error in errors if error is not None], ERROR_TYPE)

    def reread(self, data: Any) -> pa.Table:
        """Return the lines as they are, beside their `_error`: parsed, some values would be others."""
        lines = bytes(data).splitlines()
        try:
            errors = [json.loads(line).get("_error") if b'"_error": {' in line else None for line in lines]
        except ValueError as error:
            raise DataError(f"not readable as JSON Lines: {error}") from error
        return _lines(lines, pa.array(errors, ERROR_TYPE))

    def as_reread(self, rows: pa.Table) -> pa.Table:
        """Encode rows to lines."""
        errors = rows["_error"] if "_error" in rows.column_names else pa.nulls(rows.num_rows, ERROR_TYPE)
        return _lines([line.encode() for line in _encoded(rows)], errors)

    def row_numbers(self, data: bytes) -> Sequence[int] | None:
        """Parse every line; return the values of `_row`, if they have any."""
        try:
            rows = [json.loads(line) for line in data.splitlines()]
        except ValueError as error:
            raise DataError(f"not readable as JSON Lines: {error}") from error
        return [row["_row"] for row in rows] if rows and "_row" in rows[0] else None


class JsonlPart:
    """Writes one line per row."""

    def __init__(self) -> None:
        self._out = pa.BufferOutputStream()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the lines so far."""
        return self._num_bytes

    def write(self, rows: pa.Table) -> None:
        """Add rows."""
        if _LINE in rows.column_names:
            self._num_bytes += self._out.write(b"".join(line + b"\n" for line in rows[_LINE].to_pylist()))
            return
        for at in range(0, rows.num_rows, _ROWS_AT_ONCE):
            lines = _encoded(rows.slice(at, _ROWS_AT_ONCE))
            self._num_bytes += self._out.write("".join(line + "\n" for line in lines).encode())

    def finish(self, metadata: Mapping[str, str]) -> pa.Buffer:  # noqa: ARG002 - JSON Lines has no footer
        """Return the lines."""
        return self._out.getvalue()


def _lines(lines: Sequence[bytes], errors: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return lines that are written as they are."""
    return pa.table({_LINE: pa.array(lines, pa.large_binary()), "_error": errors})


def _encoded(rows: pa.Table) -> Iterator[str]:
    for row in json_rows(rows):
        yield json.dumps(row, ensure_ascii=False, allow_nan=False)


def json_rows(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield rows with values that JSON can hold. Bytes become base64, NaN and infinity null."""
    for row in _with_texts(rows).to_pylist():
        yield _plain(row)


def _with_texts(rows: pa.Table) -> pa.Table:
    """Write times as Arrow does: Python's end with the year 9999, and have no nanoseconds."""
    for at, field in enumerate(rows.schema):
        if pa.types.is_temporal(field.type) and not pa.types.is_interval(field.type):
            rows = rows.set_column(at, field.name, _iso_8601(rows.column(at)))
    return rows


def _iso_8601(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times as texts; those of a time zone in UTC, which needs no tables of zones."""
    type_ = column.type
    if pa.types.is_duration(type_):
        digits = _DIGITS[type_.unit]
        return pa.chunked_array(
            [[_seconds(value, digits) for value in column.cast(pa.int64()).to_pylist()]], pa.string()
        )
    if pa.types.is_date(type_):
        return column.cast(pa.date32()).cast(pa.string())
    if not pa.types.is_timestamp(type_):
        return column.cast(pa.string())
    import pyarrow.compute as pc  # late: it takes a while

    text = pc.replace_substring(column.cast(pa.timestamp(type_.unit)).cast(pa.string()), " ", "T")
    return pc.binary_join_element_wise(text, "Z", "") if type_.tz else text


def _seconds(value: int | None, digits: int) -> str | None:
    return None if value is None else f"PT{Decimal(value).scaleb(-digits):f}S"


def _plain(value: Any) -> Any:
    """Turn a value into what JSON can hold."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else _dated(value)


def _dated(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
