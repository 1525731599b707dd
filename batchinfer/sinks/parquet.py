"""Parquet parts: one file per unit, checksummed pages, the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.config.sections import Count, OutputOptions
from batchinfer.errors import ContractError, DataError
from batchinfer.row_errors import ERROR_TYPE

_LOOKED_AT = 1024


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
        out = pa.BufferOutputStream()
        try:
            pq.write_table(
                keyed,
                out,
                row_group_size=self._options.row_group_rows,
                compression=self._options.compression,
                # Dictionaries help repeated words; on floats and on keys they cost most of the speed.
                use_dictionary=_repeating(rows),
                write_page_checksum=True,
            )
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise ContractError(f"Parquet cannot hold the output: {error}") from error
        return out.getvalue()

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


def _is_word(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_integer(type_)
        or pa.types.is_boolean(type_)
    )
