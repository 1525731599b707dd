"""Which result a step takes and which it gives: `from`, `to`, and what happens to the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError
from batchinfer.options import Field, Options

if TYPE_CHECKING:
    from batchinfer.data import Column

V = TypeVar("V")

FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
_ROWS_ONLY = 1
_VECTOR = 2
_SEQUENCE = 3


class StepOptions(Options):
    """What every step that turns one result into another says."""

    from_: str | None = Field(default=None, alias="from")
    """The result to take; by default the only one there is."""

    to: str | None = None
    """Name of what is given; by default the step's own word for it."""

    keep: bool = False
    """Keep the result that was taken, beside the new one."""


def taken(options: StepOptions, results: Mapping[str, V]) -> tuple[str, V]:
    """Return the result that a step takes. Raises ContractError where it is missing or not the only one."""
    name = options.from_
    if name is None:
        if not results:
            raise ContractError("there is no result to take")
        if len(results) > 1:
            raise ContractError(
                f"there are several results ({', '.join(results)})", hint="say which: {from: NAME}"
            )
        name = next(iter(results))
    if name not in results:
        raise ContractError(f"there is no result {name!r}; there are {', '.join(results) or 'none'}")
    return name, results[name]


def given(options: StepOptions, results: Mapping[str, V], name: str, new: Mapping[str, V]) -> dict[str, V]:
    """Return the results after a step: without what it took, with what it gives.

    Raises ContractError where a new name is taken: a result is never lost under another.
    """
    rest = {key: value for key, value in results.items() if key != name or options.keep}
    for key in new:
        if key in rest:
            raise ContractError(
                f"there is already a result {key!r}", hint="give the new one another name: to"
            )
    return {**rest, **new}


def vector_spec(spec: TensorSpec) -> TensorSpec:
    """Return a spec that is a float vector per row. Raises ContractError."""
    if len(spec.shape) != _VECTOR or spec.dtype not in FLOATS:
        raise ContractError(f"needs a float vector per row, and `{spec}` is none")
    return spec


def scores_spec(spec: TensorSpec) -> TensorSpec:
    """Return a spec that is floats of any shape per row. Raises ContractError."""
    if spec.dtype not in FLOATS:
        raise ContractError(f"needs floats, and `{spec}` are none")
    return spec


def sequence_spec(spec: TensorSpec) -> TensorSpec:
    """Return a spec that is a float vector per token. Raises ContractError."""
    if len(spec.shape) != _SEQUENCE or spec.dtype not in FLOATS:
        raise ContractError(f"needs a float vector per token, and `{spec}` is none")
    return spec


def row_spec(spec: TensorSpec) -> TensorSpec:
    """Return a spec that is one number per row (also as a vector of one). Raises ContractError."""
    if spec.shape not in {(None,), (None, 1)}:
        raise ContractError(f"needs one number per row, and `{spec}` is none")
    return spec


def float32(column: Column) -> np.ndarray[Any, Any]:
    """Return a result as float32 (float64 stays): half precision is no ground to add numbers up on."""
    values = np.asarray(column)
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
