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
from batchinfer.options import EntryPoint, Options
from batchinfer.user_code import call, load_entry

if TYPE_CHECKING:
    from batchinfer.data import Column, Tensors


class PythonOptions(Options):
    """A function of yours."""

    function: EntryPoint
    """`module:function`, importable from the job file's folder or an installed package. It takes a dict
    of NumPy (or Arrow) arrays, the results so far, and returns one with as many rows."""

    output: dict[str, str] | None = None
    """What it returns, and the types. By default, what it returns for no rows."""


class Python:
    """Calls the user's function. Its results replace those that it got."""

    Options = PythonOptions
    shorthand: ClassVar[str] = "function"

    def __init__(self, options: PythonOptions) -> None:
        self._options = options

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Return the declared types, or ask the function with empty arrays. Raises ContractError."""
        if self._options.output is not None:
            try:
                types = {name: tensors.parse_type(text) for name, text in self._options.output.items()}
            except ValueError as error:
                raise ContractError(str(error)) from error
            return {name: tensors.spec_of(name, type_) for name, type_ in types.items()}
        empty = {name: _empty(spec) for name, spec in specs.items()}
        try:
            given = self._call(empty)
            return {name: _spec(name, column) for name, column in given.items()}
        except (DataError, ValueError, pa.ArrowException) as error:
            raise ContractError(
                f"{self._options.function} takes no empty arrays, so that its results are unknown: {error}",
                hint="declare them: python: {function: …, output: {name: float32}}",
            ) from error

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Call the function. Raises DataError where it raises or returns no dict."""
        return self._call(results)

    def _call(self, results: Mapping[str, Column]) -> Mapping[str, Any]:
        given = call(self._options.function, self._function, dict(results))
        if not isinstance(given, Mapping):
            raise DataError(f"{self._options.function} returned {type(given).__name__}, not a dict")
        return given

    @functools.cached_property
    def _function(self) -> Any:
        return load_entry(self._options.function)


def _empty(spec: TensorSpec) -> Any:
    if spec.dtype not in tensors.NUMERIC:
        return pa.array([], tensors.arrow_type(spec))
    return np.empty((0, *(1 if size is None else size for size in spec.shape[1:])), spec.dtype)


def _spec(name: str, column: Any) -> TensorSpec:
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        return tensors.spec_of(name, column.type)
    values = np.asarray(column)
    return TensorSpec(name, values.dtype.name, (None, *values.shape[1:]))
