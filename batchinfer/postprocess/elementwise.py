"""`softmax`, `sigmoid`, `cast`: number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from batchinfer import tensors
from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError, DataError
from batchinfer.postprocess.naming import FLOATS, StepOptions, float32, given, scores_spec, taken, vector_spec

if TYPE_CHECKING:
    from batchinfer.data import Column, Tensors


class SoftmaxOptions(StepOptions):
    """Logits to probabilities that sum to one."""


class Softmax:
    """softmax over the last axis, shifted by its maximum so that nothing overflows."""

    Options = SoftmaxOptions
    shorthand: ClassVar[str] = "from"

    def __init__(self, options: SoftmaxOptions) -> None:
        self._options = options
        self._to = options.to or "probabilities"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give `probabilities`, of the same shape, float32."""
        name, spec = taken(self._options, specs)
        shape = vector_spec(spec).shape
        return given(self._options, specs, name, {self._to: TensorSpec(self._to, _float(spec), shape)})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Turn logits into probabilities."""
        name, column = taken(self._options, results)
        logits = float32(column)
        # A row of infinities has no probabilities: NaN, and no warning.
        with np.errstate(invalid="ignore"):
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
            probabilities = powers / powers.sum(axis=-1, keepdims=True)
        return given(self._options, results, name, {self._to: probabilities})


class SigmoidOptions(StepOptions):
    """Logits to probabilities, each for itself."""


class Sigmoid:
    """1 / (1 + exp(-x)), by the branch that cannot overflow."""

    Options = SigmoidOptions
    shorthand: ClassVar[str] = "from"

    def __init__(self, options: SigmoidOptions) -> None:
        self._options = options
        self._to = options.to or "probability"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give `probability`, of the same shape; a vector of one becomes a number."""
        name, spec = taken(self._options, specs)
        shape = scores_spec(spec).shape
        shape = shape[:1] if shape[1:] == (1,) else shape
        return given(self._options, specs, name, {self._to: TensorSpec(self._to, _float(spec), shape)})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Turn logits into probabilities."""
        name, column = taken(self._options, results)
        logits = float32(column)
        small = np.exp(-np.abs(logits))
        values = np.where(logits >= 0, 1, small) / (1 + small)
        values = values[:, 0] if values.shape[1:] == (1,) else values
        return given(self._options, results, name, {self._to: values})


class CastOptions(StepOptions):
    """Numbers of another type."""

    dtype: Literal["bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"]
    """The type of the result."""


class Cast:
    """Casts a result as NumPy does: floats to whole numbers are cut, not rounded. What has no place in the
    new type (NaN among whole numbers, 300 in uint8) ends the run: it would become another number."""

    Options = CastOptions
    shorthand: ClassVar[str] = "dtype"

    def __init__(self, options: CastOptions) -> None:
        self._options = options

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give the same result with another dtype, under its own name unless `to` says another."""
        name, spec = taken(self._options, specs)
        if spec.dtype not in tensors.NUMERIC | FLOATS:
            raise ContractError(f"needs numbers, and `{spec}` are none")
        to = self._options.to or name
        return given(self._options, specs, name, {to: TensorSpec(to, self._options.dtype, spec.shape)})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Cast. Raises DataError where a number does not fit."""
        name, column = taken(self._options, results)
        values, dtype = np.asarray(column), np.dtype(self._options.dtype)
        with np.errstate(all="ignore"):
            cast = values.astype(dtype)
        if not np.can_cast(values.dtype, dtype) and _loses(values, cast):
            raise DataError(
                f"cast: {name!r} holds NaN, infinity or a number that does not fit {dtype}",
                hint="mend such rows with a python step before the cast",
            )
        return given(self._options, results, name, {self._options.to or name: cast})


def _loses(values: np.ndarray[Any, Any], cast: np.ndarray[Any, Any]) -> bool:
    """Tell whether a number has no place in the dtype that it was cast to."""
    if cast.dtype.kind == "f":
        return bool((np.isinf(cast) & ~np.isinf(values)).any())
    if cast.dtype.kind == "b":
        return bool(np.isnan(values).any())
    low, high = int(np.iinfo(cast.dtype).min), int(np.iinfo(cast.dtype).max)
    if values.dtype.kind in "iub":
        return bool(((values < low) | (values > high)).any())
    # Doubles hold both bounds exactly: the upper one is a power of two, and excluded.
    cut = np.trunc(values.astype(np.float64, copy=False))
    return not ((cut >= low) & (cut < float(high + 1))).all()


def _float(spec: TensorSpec) -> str:
    return "float64" if spec.dtype == "float64" else "float32"
