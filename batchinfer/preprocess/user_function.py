"""`python`: the user's own function, Arrow batch in, Arrow batch out, as many rows as it got."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import Encoded, TensorSpec
from batchinfer.errors import ContractError, DataError
from batchinfer.options import EntryPoint, Field, Options
from batchinfer.preprocess.appending import with_column, with_field
from batchinfer.user_code import call, load_entry


class PythonOptions(Options):
    """A function of yours."""

    function: EntryPoint
    """`module:function`, importable from the job file's folder or an installed package. It takes a
    pyarrow.RecordBatch and returns one, a Table or a dict of arrays, with as many rows. It runs in processes
    of its own, one call at a time in each; with `compute: {loaders: threads}`, in several threads at once."""

    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Columns that it gets; by default all there are. Naming them keeps the others from being read."""

    output: dict[str, str] | None = Field(default=None, min_length=1)
    """Columns that it adds or replaces, and their types. By default, what it returns for no rows."""


class Python:
    """Calls the user's function. What it returns is held against its declared types, every time, and
    replaces columns of the same name; columns that it does not return stay."""

    Options = PythonOptions
    shorthand: ClassVar[str] = "function"

    def __init__(self, options: PythonOptions) -> None:
        self._options = options

    def input_columns(self) -> frozenset[str] | None:
        """Columns that the function needs; None for all there are."""
        return None if self._options.columns is None else frozenset(self._options.columns)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the declared schema, or ask the function with an empty batch. Raises ContractError."""
        if self._options.output is None:
            added = self._asked(schema)
        else:
            try:
                added = {name: tensors.parse_type(text) for name, text in self._options.output.items()}
            except ValueError as error:
                raise ContractError(str(error)) from error
            _ = self._function  # One that is not there is found now, not at the first row.
        for name, type_ in added.items():
            schema = with_field(schema, pa.field(name, type_))
        self._added = added
        return schema

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Call the function. Raises DataError where it raises or breaks its word."""
        # A chunk whose rows all failed before is no news for the function.
        given = self._call(self._taken(rows)) if rows.num_rows else {}
        for name, type_ in self._added.items():
            column = self._column(given, name, type_, rows.num_rows) if rows.num_rows else pa.nulls(0, type_)
            rows = with_column(rows, pa.field(name, type_), column)
        return Encoded(rows)

    def _taken(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return what the function gets: the same columns for no rows as for all."""
        return rows if self._options.columns is None else rows.select(list(self._options.columns))

    def _asked(self, schema: pa.Schema) -> dict[str, pa.DataType]:
        """Call the function with no rows to learn what it returns."""
        declare = "declare them: python: {function: …, output: {column: float32}}"
        empty = pa.RecordBatch.from_pylist([], schema=schema)
        try:
            types = {name: _array(column).type for name, column in self._call(self._taken(empty)).items()}
        except DataError as error:
            raise ContractError(
                f"{self._options.function} does not take an empty batch, so that its columns are unknown: "
                f"{error.message}",
                where=error.where,
                hint=declare,
            ) from error
        for name, type_ in types.items():
            handed_back = name in schema.names and schema.field(name).type == type_
            if pa.types.is_null(type_) and not handed_back:
                raise ContractError(
                    f"{self._options.function} returns {name!r} without a type for an empty batch",
                    hint=declare,
                )
        return types

    def _call(self, rows: pa.RecordBatch) -> dict[str, Any]:
        """Call the function, and return its columns by name: Arrow or NumPy arrays, or lists."""
        given = call(self._options.function, self._function, rows)
        if isinstance(given, (pa.RecordBatch, pa.Table)):
            return dict(zip(given.schema.names, given.columns, strict=True))
        if not isinstance(given, Mapping):
            raise DataError(
                f"{self._options.function} returned {type(given).__name__}, not a RecordBatch or a dict"
            )
        return dict(given)

    def _column(self, given: Mapping[str, Any], name: str, type_: pa.DataType, num_rows: int) -> pa.Array:
        """Return one column of the declared type."""
        if name not in given:
            raise DataError(f"{self._options.function} returned no column {name!r}")
        try:
            column = _array(given[name])
            column = column if column.type == type_ else tensors.to_arrow(column, type_)
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{self._options.function} returned {_kind(given[name])} in {name!r}, where "
                f"{tensors.format_type(type_)} was declared"
            ) from error
        if len(column) != num_rows:
            raise DataError(
                f"{self._options.function} got {num_rows} rows and returned {len(column)} in {name!r}",
                hint="return one row for each row, in the same order",
            )
        return column

    @functools.cached_property
    def _added(self) -> dict[str, pa.DataType]:
        raise AssertionError("output_schema comes before encode")

    @functools.cached_property
    def _function(self) -> Any:
        return load_entry(self._options.function)


def _array(column: Any) -> pa.Array:
    """Return what a function gave as an Arrow array; rows of numbers become fixed-size lists."""
    if isinstance(column, pa.Array):
        return column
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    if isinstance(column, np.ndarray) and column.ndim > 1:
        spec = TensorSpec("", column.dtype.name, (None, *column.shape[1:]))
        return tensors.to_arrow(column, tensors.arrow_type(spec))
    return pa.array(column)


def _kind(column: Any) -> str:
    """Say what a function gave, in the words of the job file."""
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        return tensors.format_type(column.type)
    if isinstance(column, np.ndarray):
        sizes = ", ".join(["?", *map(str, column.shape[1:])])
        return f"{column.dtype.name}[{sizes}]"
    return type(column).__name__
