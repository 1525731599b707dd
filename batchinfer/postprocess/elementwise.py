"""`softmax`, `sigmoid`, `cast`: number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from batchinfer import tensors
from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError
from batchinfer.postprocess.naming import StepOptions, float32, given, scores_spec, taken, vector_spec

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
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        return given(self._options, results, name, {self._to: powers / powers.sum(axis=-1, keepdims=True)})


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
    """Casts a result as NumPy does: floats to integers are cut, not rounded."""

    Options = CastOptions
    shorthand: ClassVar[str] = "dtype"

    def __init__(self, options: CastOptions) -> None:
        self._options = options

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give the same result with another dtype, under its own name unless `to` says another."""
        name, spec = taken(self._options, specs)
        if spec.dtype not in tensors.NUMERIC:
            raise ContractError(f"needs numbers, and `{spec}` are none")
        to = self._options.to or name
        return given(self._options, specs, name, {to: TensorSpec(to, self._options.dtype, spec.shape)})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Cast."""
        name, column = taken(self._options, results)
        return given(
            self._options,
            results,
            name,
            {self._options.to or name: np.asarray(column).astype(self._options.dtype)},
        )


def _float(spec: TensorSpec) -> str:
    return "float64" if spec.dtype == "float64" else "float32"
