"""`columns`: pass columns as tensors, cast, or stacked into one feature vector per row."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.arrow_views import column_of, values_of
from batchinfer.data import Encoded, ErrorCode, Failure
from batchinfer.errors import ContractError
from batchinfer.options import Field, Options
from batchinfer.preprocess.appending import with_column, with_field

Values: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""Numbers of shape (rows,) or (rows, width)."""

Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
"""One flag per number."""

_VECTOR = 2

Dtype = Literal["bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"]


class ColumnsOptions(Options):
    """Columns as tensors."""

    columns: tuple[str, ...] = Field(min_length=1)
    """Columns of numbers (booleans count as 0 and 1, decimals as doubles) or of fixed-size lists of them, in
    the order of the features."""

    to: str | None = None
    """Stack them into one column of this name, a vector per row. Otherwise each is cast in its place."""

    dtype: Dtype | None = None
    """Number type of the result; by default that of the columns. A row with a number that it cannot hold
    fails: out of range, or not whole where whole numbers are asked for."""

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
        width = sum(1 if width is None else width for width, _ in specs)
        stacked = pa.list_(tensors.parse_type(dtypes[0]), width)
        return with_field(schema, pa.field(self._options.to, stacked))

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Cast or stack. A row with a null, or with a number that does not fit, fails."""
        failed: dict[int, Failure] = {}
        arrays = [self._dense(name, rows[name], failed) for name in self._options.columns]
        if self._options.to is None:
            for name, values in zip(self._options.columns, arrays, strict=True):
                rows = with_column(rows, pa.field(name, _type_of(values)), _as_column(values))
            return Encoded(rows, failed)
        flat = [values[:, None] if values.ndim == 1 else values for values in arrays]
        stacked = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        return Encoded(
            with_column(rows, pa.field(self._options.to, _type_of(stacked)), _as_column(stacked)), failed
        )

    def _spec(self, field: pa.Field) -> tuple[int | None, str]:
        """Return the width (None for a scalar) and dtype of a column after the cast."""
        spec = tensors.spec_of(field.name, _number_type(field.type))
        fits = spec.dtype in tensors.NUMERIC and None not in spec.shape[1:]
        if not fits or len(spec.shape) > _VECTOR:
            raise ContractError(
                f"column {field.name!r} has type {tensors.format_type(field.type)}, which is no number",
                hint=_way_out(field.type),
            )
        width = spec.shape[1] if len(spec.shape) == _VECTOR else None
        return width, self._options.dtype or spec.dtype

    def _dense(self, name: str, column: pa.Array, failed: dict[int, Failure]) -> Values:
        """Return a column as an ndarray without nulls, of the wanted dtype; a row keeps its first failure."""
        values, nulls = _without_nulls(_numbers(column))
        dtype = np.dtype(self._options.dtype or values.dtype)
        if nulls is not None and self._options.nulls == "error":
            _fail(failed, nulls, f"column {name!r} is null")
        with np.errstate(all="ignore"):
            cast = values.astype(dtype, copy=False)
        if not np.can_cast(values.dtype, dtype):
            _fail(failed, _misfits(values, cast), f"column {name!r} holds a number that does not fit {dtype}")
        if nulls is not None and self._options.nulls == "nan":
            cast = cast.copy()
            cast[nulls] = np.nan
        return cast


def _number_type(type_: pa.DataType) -> pa.DataType:
    """Return the type whose numbers a column is taken as: decimals are doubles."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return pa.float64() if pa.types.is_decimal(type_) else type_


def _numbers(column: pa.Array) -> pa.Array:
    """Return the column as numbers, or as fixed-size lists of them."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


def _without_nulls(column: pa.Array) -> tuple[Values, Flags | None]:
    """Return values, zero where null, and which of them are null (None: none is), both of one shape."""
    if not len(tensors.null_rows(column)):
        return tensors.to_numpy(column), None
    import pyarrow.compute as pc  # late: it takes a while

    missing = values_of(column.is_null())
    inner = column
    shape: tuple[int, ...] = (len(column),)
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        inner, shape = column.values.slice(column.offset * size, len(column) * size), (len(column), size)
        missing = missing[:, None] | values_of(inner.is_null()).reshape(shape)
    values = values_of(pc.fill_null(inner, pa.scalar(0).cast(inner.type))).reshape(shape)
    # What lies below a null list is anything.
    return np.where(missing, values.dtype.type(0), values), missing


def _misfits(values: Values, cast: Values) -> Flags:
    """Return which numbers are others after a cast: cut, wrapped around, or infinite."""
    if cast.dtype.kind == "f":
        grown: Flags = np.isinf(cast) & ~np.isinf(values)
        return grown
    low, high = (0, 1) if cast.dtype.kind == "b" else (np.iinfo(cast.dtype).min, np.iinfo(cast.dtype).max)
    if values.dtype.kind in "iub":
        outside: Flags = (values < low) | (values > high)
        return outside
    # Doubles hold both bounds exactly: the upper one is a power of two, and excluded.
    wide = values.astype(np.float64, copy=False)
    fits: Flags = (wide >= low) & (wide < float(high + 1)) & (wide == np.trunc(wide))
    return ~fits


def _fail(failed: dict[int, Failure], bad: Flags, message: str) -> None:
    """Fail the rows of which any number is bad."""
    rows = bad if bad.ndim == 1 else bad.any(axis=1)
    failure = Failure(ErrorCode.SCHEMA, message)
    for row in np.flatnonzero(rows).tolist():
        failed.setdefault(row, failure)


def _way_out(type_: pa.DataType) -> str:
    if pa.types.is_temporal(type_):
        return "turn it into a number (a year, an hour) by a python step"
    if pa.types.is_nested(type_):
        return (
            "store vectors as fixed-size lists; a list of varying length can feed the model as it is, padded"
        )
    return "cast it to a number by a python step, or leave it out"


def _type_of(values: Values) -> pa.DataType:
    return _column_type(values.shape[1] if values.ndim == _VECTOR else None, values.dtype.name)


def _as_column(values: Values) -> pa.Array:
    flat = column_of(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _column_type(width: int | None, dtype: str) -> pa.DataType:
    inner = tensors.parse_type(dtype)
    return inner if width is None else pa.list_(inner, width)


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float")
