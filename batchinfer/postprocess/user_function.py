"""`python`: the user's own function over results: arrays by name in, arrays by name out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError, DataError
from batchinfer.options import EntryPoint, Field, Options
from batchinfer.user_code import call, load_entry

if TYPE_CHECKING:
    from batchinfer.data import Column, Tensors

_NUMBERS = "biuf"


class PythonOptions(Options):
    """A function of yours."""

    function: EntryPoint
    """`module:function`, importable from the job file's folder or an installed package. It takes a dict
    of NumPy (or Arrow) arrays, the results so far, and returns one with as many rows."""

    output: dict[str, str] | None = Field(default=None, min_length=1)
    """What it returns, and the types. By default, what it returns for no rows."""


class Python:
    """Calls the user's function. Its results replace those that it got, and are held against their types,
    every time."""

    Options = PythonOptions
    shorthand: ClassVar[str] = "function"

    def __init__(self, options: PythonOptions) -> None:
        self._options = options

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Return the declared types, or ask the function with empty arrays. Raises ContractError."""
        if self._options.output is None:
            said = self._asked(specs)
        else:
            try:
                types = {name: tensors.parse_type(text) for name, text in self._options.output.items()}
            except ValueError as error:
                raise ContractError(str(error)) from error
            said = {name: tensors.spec_of(name, type_) for name, type_ in types.items()}
            _ = self._function  # One that is not there is found now, not at the first batch.
        self._said = said
        return said

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Call the function. Raises DataError where it raises or breaks its word."""
        num_rows = len(next(iter(results.values()))) if results else 0
        given = self._call(results)
        return {name: self._held(given, spec, num_rows) for name, spec in self._said.items()}

    def _asked(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Call the function with no rows to learn what it returns."""
        declare = "declare them: python: {function: …, output: {name: float32}}"
        try:
            given = self._call({name: _empty(spec) for name, spec in specs.items()})
            said = {name: _spec(name, column) for name, column in given.items()}
        except (DataError, ValueError, pa.ArrowException) as error:
            raise ContractError(
                f"{self._options.function} takes no empty arrays, so that its results are unknown: "
                f"{getattr(error, 'message', error)}",
                where=getattr(error, "where", None),
                hint=declare,
            ) from error
        for name, spec in said.items():
            if spec.dtype == "null":
                raise ContractError(
                    f"{self._options.function} returns {name!r} without a type for empty arrays", hint=declare
                )
        return said

    def _call(self, results: Mapping[str, Column]) -> dict[str, Column]:
        """Call the function, and return its results as arrays."""
        given = call(self._options.function, self._function, dict(results))
        if not isinstance(given, Mapping):
            raise DataError(f"{self._options.function} returned {type(given).__name__}, not a dict")
        return {name: self._array(name, column) for name, column in given.items()}

    def _array(self, name: str, column: Any) -> Column:
        """Return numbers as a NumPy array, everything else as an Arrow array."""
        if isinstance(column, pa.ChunkedArray):
            return column.combine_chunks()
        if isinstance(column, pa.Array):
            return column
        try:
            # An empty list is left to Arrow, which says that it has no type; NumPy would take it for floats.
            values = np.asarray(column) if isinstance(column, np.ndarray) or len(column) else None
            return values if values is not None and values.dtype.kind in _NUMBERS else pa.array(column)
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{self._options.function} returned {type(column).__name__} in {name!r}, which is no column"
            ) from error

    def _held(self, given: Mapping[str, Column], spec: TensorSpec, num_rows: int) -> Column:
        """Return one result, in the type that was declared."""
        if spec.name not in given:
            raise DataError(f"{self._options.function} returned no {spec.name!r}")
        column = given[spec.name]
        if len(column) != num_rows:
            raise DataError(
                f"{self._options.function} got {num_rows} rows and returned {len(column)} in {spec.name!r}",
                hint="return one row for each row, in the same order",
            )
        try:
            return _typed(column, spec)
        except (ValueError, pa.ArrowException) as error:
            raise DataError(
                f"{self._options.function} returned `{_spec(spec.name, column)}` where `{spec}` was declared"
            ) from error

    @functools.cached_property
    def _said(self) -> dict[str, TensorSpec]:
        raise AssertionError("output_specs comes before apply")

    @functools.cached_property
    def _function(self) -> Any:
        return load_entry(self._options.function)


def _empty(spec: TensorSpec) -> Any:
    """Return a result of no rows."""
    dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
    if dtype not in tensors.NUMERIC:
        return pa.array([], tensors.arrow_type(spec))
    return np.empty((0, *(1 if size is None else size for size in spec.shape[1:])), dtype)


def _spec(name: str, column: Column) -> TensorSpec:
    if isinstance(column, np.ndarray):
        return TensorSpec(name, column.dtype.name, (None, *column.shape[1:]))
    return tensors.spec_of(name, column.type)


def _typed(column: Column, spec: TensorSpec) -> Column:
    """Return a result as its spec says. Raises ValueError or ArrowInvalid where it is another."""
    if not isinstance(column, np.ndarray) or spec.dtype not in tensors.NUMERIC:
        return tensors.to_arrow(column, tensors.arrow_type(spec))
    sizes = zip(column.shape[1:], spec.shape[1:], strict=True)
    if any(wanted not in {None, size} for size, wanted in sizes):
        raise ValueError("the shapes differ")
    if not np.can_cast(column.dtype, spec.dtype, "same_kind"):
        raise ValueError("the kinds of number differ")
    return column.astype(spec.dtype, copy=False)
