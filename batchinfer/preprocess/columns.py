"""`columns`: pass columns as tensors, cast, or stacked into one feature vector per row."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer import tensors
from batchinfer.data import Encoded, ErrorCode, Failure
from batchinfer.errors import ContractError
from batchinfer.options import Field, Options
from batchinfer.preprocess.appending import with_column, with_field

Dtype = Literal["bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"]


class ColumnsOptions(Options):
    """Columns as tensors."""

    columns: tuple[str, ...] = Field(min_length=1)
    """Numeric, boolean or fixed-size-list columns, in the order of the features."""

    to: str | None = None
    """Stack them into one column of this name, a vector per row. Otherwise each is cast in its place."""

    dtype: Dtype | None = None
    """Number type of the result; by default that of the columns."""

    nulls: Literal["error", "zero", "nan"] = "error"
    """A row with a null fails (error), or the null counts as 0 or NaN."""


class Columns:
    """Casts columns in place, or stacks them: fixed-width columns become one fixed-size list."""

    Options = ColumnsOptions
    shorthand: ClassVar[str] = "columns"

    def __init__(self, options: ColumnsOptions) -> None:
        self._options = options

    def input_columns(self) -> frozenset[str]:
        """Columns that are cast or stacked."""
        return frozenset(self._options.columns)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Replace the columns' types, or add the stacked column. Raises ContractError for others."""
        specs = [self._spec(schema.field(name)) for name in self._options.columns]
        if self._options.nulls == "nan" and not all(_is_float(dtype) for _, dtype in specs):
            raise ContractError("nulls: nan needs a float dtype", hint="set dtype: float32")
        if self._options.to is None:
            for name, (width, dtype) in zip(self._options.columns, specs, strict=True):
                at = schema.get_field_index(name)
                schema = schema.set(at, pa.field(name, _column_type(width, dtype)))
            return schema
        dtypes = sorted({dtype for _, dtype in specs})
        if len(dtypes) > 1:
            raise ContractError(
                f"columns of types {' and '.join(dtypes)} cannot be stacked", hint="set a dtype for them all"
            )
        width = sum(width or 1 for width, _ in specs)
        stacked = pa.list_(tensors.parse_type(dtypes[0]), width)
        return with_field(schema, pa.field(self._options.to, stacked))

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Cast or stack. A row with a null, or with a number that does not fit, fails."""
        failed: dict[int, Failure] = {}
        arrays = {name: self._dense(name, rows, failed) for name in self._options.columns}
        if self._options.to is None:
            for name, values in arrays.items():
                at = rows.schema.get_field_index(name)
                rows = rows.set_column(at, name, _as_column(values))
            return Encoded(rows, failed)
        flat = [values.reshape(len(values), -1) for values in arrays.values()]
        stacked = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(stacked).reshape(-1)), stacked.shape[1]
        )
        return Encoded(with_column(rows, pa.field(self._options.to, column.type), column), failed)

    def _spec(self, field: pa.Field) -> tuple[int | None, str]:
        """Return the width (None for a scalar) and dtype of a column after the cast."""
        spec = tensors.spec_of(field.name, field.type)
        fits = spec.dtype in tensors.NUMERIC and None not in spec.shape[1:]
        if not fits or len(spec.shape) > 2:  # noqa: PLR2004 - rows and one axis
            way = "cast it to a number by a python step, or leave it out"
            if pa.types.is_temporal(field.type):
                way = "turn it into a number (a year, an hour) by a python step"
            raise ContractError(
                f"column {field.name!r} has type {tensors.format_type(field.type)}, which is no number",
                hint=way,
            )
        width = spec.shape[1] if len(spec.shape) == 2 else None  # noqa: PLR2004 - see above
        return width, self._options.dtype or spec.dtype

    def _dense(
        self, name: str, rows: pa.RecordBatch, failed: dict[int, Failure]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """Return a column as an ndarray without nulls, of the wanted dtype."""
        column = rows[name]
        dtype = np.dtype(self._options.dtype or tensors.spec_of(name, column.type).dtype)
        nulls = tensors.null_rows(column)
        if len(nulls):
            column = _filled(column)
            if self._options.nulls == "error":
                failure = Failure(ErrorCode.SCHEMA, f"column {name!r} is null")
                failed.update(dict.fromkeys(nulls.tolist(), failure))
        values = tensors.to_numpy(column)
        with np.errstate(all="ignore"):
            cast = values.astype(dtype, copy=False)
        if np.issubdtype(dtype, np.integer) and not np.can_cast(values.dtype, dtype):
            same = (cast.astype(values.dtype) == values).reshape(len(values), -1).all(axis=1)
            failure = Failure(ErrorCode.SCHEMA, f"column {name!r} holds a number that does not fit {dtype}")
            failed.update(dict.fromkeys(np.flatnonzero(~same).tolist(), failure))
        if len(nulls) and self._options.nulls == "nan":
            cast = cast.copy()
            cast[nulls] = np.nan
        return cast


def _filled(column: pa.Array) -> pa.Array:
    """Put zeros where nulls are, so that the column is dense."""
    if not pa.types.is_fixed_size_list(column.type):
        return pc.fill_null(column, pa.scalar(0).cast(column.type))
    if column.null_count:
        zeros = pa.array([[0] * column.type.list_size], column.type)
        column = pc.if_else(column.is_valid(), column, zeros[0])
    inner = pc.fill_null(column.flatten(), pa.scalar(0).cast(column.type.value_type))
    return pa.FixedSizeListArray.from_arrays(inner, column.type.list_size)


def _as_column(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(np.ascontiguousarray(values))
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
    )


def _column_type(width: int | None, dtype: str) -> pa.DataType:
    inner = tensors.parse_type(dtype)
    return inner if width is None else pa.list_(inner, width)


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float")
