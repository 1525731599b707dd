"""`mean_pool`, `cls_pool`, `normalize`: token vectors to one vector per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError, DataError
from batchinfer.postprocess.naming import StepOptions, float32, given, sequence_spec, taken, vector_spec

if TYPE_CHECKING:
    from batchinfer.data import Column, Tensors

_EPSILON = 1e-12
_MASK_EPSILON = 1e-9


class MeanPoolOptions(StepOptions):
    """Mean of the token vectors."""

    mask: str = "attention_mask"
    """The model input that marks real tokens with 1 and padding with 0."""

    normalize: bool = False
    """Scale the result to length 1."""


class MeanPool:
    """Mean over real tokens, as sentence-transformers' `mean` pooling; no real token gives zeros."""

    Options = MeanPoolOptions
    shorthand: ClassVar[str] = "from"

    def __init__(self, options: MeanPoolOptions) -> None:
        self._options = options
        self._to = options.to or "embedding"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give `embedding`, float32[?, features]."""
        name, spec = taken(self._options, specs)
        size = sequence_spec(spec).shape[2]
        return given(self._options, specs, name, {self._to: TensorSpec(self._to, "float32", (None, size))})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:
        """Pool. Raises ContractError where the model has no such mask among its inputs, DataError where the
        mask is not one per token."""
        name, column = taken(self._options, results)
        if self._options.mask not in inputs:
            raise ContractError(
                f"mean_pool needs the model input {self._options.mask!r}; there are {', '.join(inputs)}",
                hint="name the mask: mean_pool: {mask: NAME}",
            )
        mask = np.asarray(inputs[self._options.mask], np.float32)
        tokens = np.asarray(column, np.float32)
        if mask.shape != tokens.shape[:2]:
            raise DataError(
                f"mean_pool got {name!r} of shape {tokens.shape} and {self._options.mask!r} of shape "
                f"{mask.shape}: they must agree in rows and tokens"
            )
        mean = _masked_mean(tokens, mask)
        pooled = _unit(mean) if self._options.normalize else mean
        return given(self._options, results, name, {self._to: pooled})


def _masked_mean(tokens: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean over tokens whose mask is not zero, float32[rows, features]."""
    weights = np.maximum(mask.sum(axis=1, keepdims=True), _MASK_EPSILON)
    # One matrix product per row, instead of a masked copy of all tokens.
    with np.errstate(invalid="ignore"):
        total = np.matmul(mask[:, None, :], tokens)[:, 0, :]
    # Some models leave NaN or infinity at padding, and 0 * NaN is NaN: such rows are added up without it.
    for row in np.flatnonzero(~np.isfinite(total).all(axis=1)):
        real = mask[row] != 0
        total[row] = mask[row, real] @ tokens[row, real]
    mean: np.ndarray[Any, Any] = total / weights
    return mean


class ClsPoolOptions(StepOptions):
    """The vector of the first token."""

    normalize: bool = False
    """Scale the result to length 1."""


class ClsPool:
    """The first token's vector, as models trained with a [CLS] token mean it."""

    Options = ClsPoolOptions
    shorthand: ClassVar[str] = "from"

    def __init__(self, options: ClsPoolOptions) -> None:
        self._options = options
        self._to = options.to or "embedding"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give `embedding`, float32[?, features]."""
        name, spec = taken(self._options, specs)
        size = sequence_spec(spec).shape[2]
        return given(self._options, specs, name, {self._to: TensorSpec(self._to, "float32", (None, size))})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Take the first token."""
        name, column = taken(self._options, results)
        first = np.array(np.asarray(column)[:, 0, :], np.float32)
        return given(
            self._options, results, name, {self._to: _unit(first) if self._options.normalize else first}
        )


class NormalizeOptions(StepOptions):
    """Vectors of length 1."""


class Normalize:
    """x / max(|x|, 1e-12), by the Euclidean norm, as torch.nn.functional.normalize."""

    Options = NormalizeOptions
    shorthand: ClassVar[str] = "from"

    def __init__(self, options: NormalizeOptions) -> None:
        self._options = options

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give the same vectors, under their own name unless `to` says another."""
        name, spec = taken(self._options, specs)
        dtype = "float64" if spec.dtype == "float64" else "float32"
        to = self._options.to or name
        return given(self._options, specs, name, {to: TensorSpec(to, dtype, vector_spec(spec).shape)})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Scale each row."""
        name, column = taken(self._options, results)
        return given(self._options, results, name, {self._options.to or name: _unit(float32(column))})


def _unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray[Any, Any] = vectors / np.maximum(lengths, _EPSILON)
    return scaled
