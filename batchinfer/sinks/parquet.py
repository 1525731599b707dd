"""Parquet parts: one file per unit, checksummed pages, the same bytes for the same rows."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.config.sections import Count, OutputOptions
from batchinfer.errors import ContractError, DataError
from batchinfer.row_errors import ERROR_TYPE

_LOOKED_AT = 1024
_LONG_BYTES = 1024 * 1024
_AROUND_BYTES = 1024 * 1024


class ParquetOptions(OutputOptions):
    """Where results go, as Parquet."""

    format: Literal["parquet"] = "parquet"

    compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = "zstd"
    """Codec of the pages."""

    row_group_rows: Count = 65_536
    """Rows of a row group, at most."""


class ParquetSink:
    """Encodes parts as Parquet."""

    Options = ParquetOptions
    suffix = ".parquet"

    def __init__(self, options: ParquetOptions) -> None:
        self._options = options

    def encode(self, rows: pa.Table, metadata: Mapping[str, str]) -> pa.Buffer:
        """Write one table at once: writing it in pieces would give other row groups, other bytes."""
        keyed = rows.replace_schema_metadata(dict(sorted(metadata.items())))
        # More than enough, as a rule. What is not written to is no memory, and all of it goes back at once.
        size = rows.nbytes + rows.nbytes // 8 + _AROUND_BYTES
        room = pa.py_buffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        try:
            out = pa.FixedSizeBufferWriter(room)
            self._write(keyed, out)
            return room.slice(0, out.tell())
        except (pa.ArrowException, OSError):
            del room  # too small, where a dictionary stands for far more; or an error that comes again
        stream = pa.BufferOutputStream()
        try:
            self._write(keyed, stream)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise ContractError(f"Parquet cannot hold the output: {error}") from error
        return stream.getvalue()

    def _write(self, rows: pa.Table, out: Any) -> None:
        pq.write_table(
            rows,
            out,
            row_group_size=self._options.row_group_rows,
            compression=self._options.compression,
            # Dictionaries help repeated words; on floats and on keys they cost most of the speed.
            use_dictionary=_repeating(rows),
            write_statistics=_counted(rows),
            write_page_checksum=True,
        )

    def count(self, data: bytes) -> tuple[int, int]:
        """Read the footer."""
        try:
            footer = pq.read_metadata(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a complete Parquet file: {error}") from error
        keys = footer.metadata or {}
        return footer.num_rows, int(keys.get(b"batchinfer.rows_error", b"0"))

    def footer(self, file: Any) -> Mapping[str, str]:
        """Read what a part says of itself: its metadata, `rows` and `schema`."""
        try:
            footer = pq.read_metadata(file)
            schema = footer.schema.to_arrow_schema().remove_metadata()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a complete Parquet file: {error}") from error
        said = {key.decode(): value.decode() for key, value in (footer.metadata or {}).items()}
        return {**said, "rows": str(footer.num_rows), "schema": schema.to_string()}

    def failed_rows(self, file: Any) -> tuple[int, pa.StructArray]:
        """Read column `_error` alone, where the footer says that rows failed."""
        try:
            footer = pq.read_metadata(file)
            named = "_error" in footer.schema.to_arrow_schema().names
            if not named or (footer.metadata or {}).get(b"batchinfer.rows_error") == b"0":
                return footer.num_rows, pa.array([], ERROR_TYPE)
            column = pq.read_table(file, columns=["_error"], page_checksum_verification=True)["_error"]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a readable Parquet file: {error}") from error
        return footer.num_rows, column.combine_chunks().drop_null()

    def row_numbers(self, data: bytes) -> Sequence[int] | None:
        """Decode every page against its checksum; return column `_row`, if there is one."""
        try:
            table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a readable Parquet file: {error}") from error
        return table["_row"].to_pylist() if "_row" in table.column_names else None


def _repeating(rows: pa.Table) -> list[str]:
    """Name the columns for which a dictionary is worth trying: words and whole numbers, of which the first
    thousand have few values."""
    return [
        field.name
        for field, column in zip(rows.schema, rows.columns, strict=True)
        if _is_word(field.type)
        and 2 * len(column.slice(0, _LOOKED_AT).unique()) <= min(len(column), _LOOKED_AT)
    ]


def _counted(rows: pa.Table) -> bool | list[str]:
    """Name the columns whose smallest and largest values are noted: all, where none has a long value.

    A long one would be left out in the end, but copied three times before that.
    """
    long = [
        field.name
        for field, column in zip(rows.schema, rows.columns, strict=True)
        if _is_bytes(field.type)
        and column.nbytes > _LONG_BYTES
        and (pc.max(pc.binary_length(column)).as_py() or 0) > _LONG_BYTES
    ]
    flat = [field.name for field in rows.schema if not pa.types.is_nested(field.type)]
    return [name for name in flat if name not in long] if long else True


def _is_bytes(type_: pa.DataType) -> bool:
    return any(
        is_(type_)
        for is_ in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _is_word(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_integer(type_)
        or pa.types.is_boolean(type_)
    )
