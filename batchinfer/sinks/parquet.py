"""Parquet parts: one file per unit, checksummed pages, the same bytes for the same rows."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.config.sections import Count, OutputOptions
from batchinfer.errors import ContractError, DataError
from batchinfer.row_errors import ERROR_TYPE
from batchinfer.tensors import least_bytes, num_bytes

_LOOKED_AT = 1024
_GROUP_BYTES = 16 * 1024 * 1024
_LONG_BYTES = 1024 * 1024
_FIRST_BYTES = 1024 * 1024


class ParquetOptions(OutputOptions):
    """Where results go, as Parquet."""

    format: Literal["parquet"] = "parquet"

    compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = "zstd"
    """Codec of the pages."""

    row_group_rows: Count = 65_536
    """Rows of a row group, at most; fewer where as many take more than 16 MiB."""


class ParquetSink:
    """Encodes parts as Parquet."""

    Options = ParquetOptions
    suffix = ".parquet"

    def __init__(self, options: ParquetOptions) -> None:
        self._options = options

    def begin(self, schema: pa.Schema, metadata: Mapping[str, str]) -> ParquetPart:
        """Begin a part."""
        return ParquetPart(self._options, schema, metadata)

    def count(self, data: bytes) -> tuple[int, int]:
        """Read the footer."""
        try:
            footer = pq.read_metadata(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a complete Parquet file: {error}") from error
        keys = footer.metadata or {}
        # Those that stand elsewhere are counted in the footer as well.
        here = "_error" in footer.schema.to_arrow_schema().names
        return footer.num_rows, int(keys.get(b"batchinfer.rows_error", b"0")) if here else 0

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

    def reread(self, data: Any) -> pa.Table:
        """Decode every page against its checksum."""
        try:
            return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a readable Parquet file: {error}") from error

    def as_reread(self, rows: pa.Table) -> pa.Table:
        """Return the rows as they are."""
        return rows

    def row_numbers(self, data: bytes) -> Sequence[int] | None:
        """Decode every page against its checksum; return column `_row`, if there is one."""
        table = self.reread(data)
        return table["_row"].to_pylist() if "_row" in table.column_names else None


class ParquetPart:
    """Encodes a row group as soon as it is full, so that little is left to do when the last rows come.

    How rows are cut into row groups depends on the rows alone, not on the pieces in which they come.
    """

    def __init__(self, options: ParquetOptions, schema: pa.Schema, metadata: Mapping[str, str]) -> None:
        self._options = options
        self._schema = schema.with_metadata(dict(sorted(metadata.items())))
        self._room = _Room()
        self._out = pa.PythonFile(self._room, mode="w")
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._group_rows = group_rows(schema, options.row_group_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the pages so far, and of the rows that wait to fill a row group."""
        return self._room.tell() + sum(num_bytes(rows) for rows in tuple(self._waiting))

    def write(self, rows: pa.Table) -> None:
        """Add rows, and encode the row groups that are full."""
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        if self._num_waiting < self._group_rows:
            return
        whole = pa.concat_tables(self._waiting)
        full = whole.num_rows - whole.num_rows % self._group_rows
        self._encode(whole.slice(0, full))
        self._waiting = [whole.slice(full)]
        self._num_waiting = whole.num_rows - full

    def finish(self, metadata: Mapping[str, str]) -> pa.Buffer:
        """Encode the rest, and the footer."""
        if self._num_waiting or self._writer is None:
            self._encode(pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table())
        assert self._writer is not None
        self._writer.add_key_value_metadata(dict(sorted(metadata.items())))
        self._writer.close()
        return self._room.buffer()

    def _encode(self, rows: pa.Table) -> None:
        keyed = rows.replace_schema_metadata(self._schema.metadata)
        try:
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    self._out,
                    keyed.schema,
                    compression=self._options.compression,
                    # Dictionaries help repeated words; on floats and on keys they cost most of the speed.
                    use_dictionary=_repeating(rows),
                    write_statistics=_counted(rows),
                    write_page_checksum=True,
                )
            self._writer.write_table(keyed, row_group_size=self._group_rows)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise ContractError(f"Parquet cannot hold the output: {error}") from error


class _Room:
    """Memory that grows with what is written, without a copy, and goes back to the kernel as a whole.

    A stream of Arrow's takes up to three times what is in it, and its allocator keeps that.
    """

    closed = False

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _FIRST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._at = 0

    def write(self, data: Any) -> int:
        """Append bytes. What is reserved beyond them is no memory until it is written to."""
        end = self._at + len(data)
        if end > len(self._map):
            self._map.resize(2 * end)
        self._map[self._at : end] = data
        self._at = end
        return len(data)

    def tell(self) -> int:
        """Return the bytes so far."""
        return self._at

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: whoever holds the buffer holds the memory."""

    def buffer(self) -> pa.Buffer:
        """Return what was written."""
        return pa.py_buffer(self._map).slice(0, self._at)


def group_rows(schema: pa.Schema, most: int) -> int:
    """Return the rows of a row group: `most`, or as many as take 16 MiB where rows are known to be wide."""
    return max(1, min(most, _GROUP_BYTES // max(least_bytes(schema), 1)))


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
    import pyarrow.compute as pc  # late: it takes a while

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
