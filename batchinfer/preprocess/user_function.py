"""`python`: the user's own function, Arrow batch in, Arrow batch out, as many rows as it got."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import Encoded
from batchinfer.errors import ContractError, DataError
from batchinfer.options import EntryPoint, Options
from batchinfer.preprocess.appending import with_column
from batchinfer.user_code import call, load_entry


class PythonOptions(Options):
    """A function of yours."""

    function: EntryPoint
    """`module:function`, importable from the job file's folder or an installed package. It takes a
    pyarrow.RecordBatch and returns one (or a dict of arrays) with as many rows."""

    columns: tuple[str, ...] = ()
    """Columns that it needs. Naming them keeps the others from being read."""

    output: dict[str, str] | None = None
    """Columns that it adds or replaces, and their types. By default, what it returns for no rows."""


class Python:
    """Calls the user's function. What it returns is held against its declared types, every time."""

    Options = PythonOptions
    shorthand: ClassVar[str] = "function"

    def __init__(self, options: PythonOptions) -> None:
        self._options = options

    def input_columns(self) -> frozenset[str]:
        """Columns that the function needs."""
        return frozenset(self._options.columns)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the declared schema, or ask the function with an empty batch. Raises ContractError."""
        if self._options.output is not None:
            try:
                added = {name: tensors.parse_type(text) for name, text in self._options.output.items()}
            except ValueError as error:
                raise ContractError(str(error)) from error
        else:
            added = self._asked(schema)
        fields = {field.name: field for field in schema}
        fields.update({name: pa.field(name, type_) for name, type_ in added.items()})
        self._added = added
        return pa.schema(list(fields.values()))

    def encode(self, rows: pa.RecordBatch) -> Encoded:
        """Call the function. Raises DataError where it raises or breaks its word."""
        given = self._call(rows)
        for name, type_ in self._added.items():
            column = self._column(given, name, type_, rows.num_rows)
            rows = with_column(rows, pa.field(name, type_), column)
        return Encoded(rows)

    def _asked(self, schema: pa.Schema) -> dict[str, pa.DataType]:
        empty = pa.RecordBatch.from_pylist([], schema=schema)
        try:
            given = self._call(empty)
        except DataError as error:
            raise ContractError(
                f"{self._options.function} does not take an empty batch, so that its columns are unknown: "
                f"{error.message}",
                hint="declare them: python: {function: …, output: {column: float32}}",
            ) from error
        return {name: column.type for name, column in given.items() if _is_new(schema, name, column.type)}

    def _call(self, rows: pa.RecordBatch) -> dict[str, pa.Array]:
        given = call(self._options.function, self._function, rows)
        if isinstance(given, pa.Table):
            given = given.combine_chunks()
        if isinstance(given, (pa.RecordBatch, pa.Table)):
            given = dict(zip(given.schema.names, given.columns, strict=True))
        if not isinstance(given, Mapping):
            raise DataError(
                f"{self._options.function} returned {type(given).__name__}, not a RecordBatch or a dict"
            )
        return {name: _array(column) for name, column in given.items()}

    def _column(
        self, given: Mapping[str, pa.Array], name: str, type_: pa.DataType, num_rows: int
    ) -> pa.Array:
        if name not in given:
            raise DataError(f"{self._options.function} returned no column {name!r}")
        column = given[name]
        if len(column) != num_rows:
            raise DataError(
                f"{self._options.function} got {num_rows} rows and returned {len(column)} in {name!r}",
                hint="return one row for each row, in the same order",
            )
        if column.type != type_:
            try:
                return column.cast(type_)
            except pa.ArrowException as error:
                raise DataError(
                    f"{self._options.function} returned {column.type} in {name!r}, where {type_} was declared"
                ) from error
        return column

    @functools.cached_property
    def _added(self) -> dict[str, pa.DataType]:
        raise AssertionError("output_schema comes before encode")

    @functools.cached_property
    def _function(self) -> Any:
        return load_entry(self._options.function)


def _is_new(schema: pa.Schema, name: str, type_: pa.DataType) -> bool:
    """Tell whether a returned column is more than an input column handed back."""
    return name not in schema.names or schema.field(name).type != type_


def _array(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    return column if isinstance(column, pa.Array) else pa.array(column)
