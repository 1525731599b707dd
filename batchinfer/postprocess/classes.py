"""`argmax`, `top_k`, `threshold`, `labels`: scores to decisions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from batchinfer.data import TensorSpec
from batchinfer.errors import ContractError, DataError
from batchinfer.options import ContentPath, Field, model_validator
from batchinfer.postprocess.label_names import check_number, look_up, read_labels
from batchinfer.postprocess.naming import (
    StepOptions,
    float32,
    given,
    row_spec,
    scores_spec,
    taken,
    vector_spec,
)

if TYPE_CHECKING:
    from batchinfer.data import Column, Tensors


class ArgmaxOptions(StepOptions):
    """Scores to the number of the best class."""

    labels: ContentPath | None = None
    """Names of the classes: a text file, one per line, or JSON. Adds `<to>_label`."""


class Argmax:
    """The first of the largest scores: `class`, int64, and with labels `class_label`."""

    Options = ArgmaxOptions
    shorthand: ClassVar[str] = "from"

    def __init__(self, options: ArgmaxOptions) -> None:
        self._options = options
        self._to = options.to or "class"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give `class`, int64, and its name where there are labels."""
        name, spec = taken(self._options, specs)
        classes = vector_spec(spec).shape[1]
        new = {self._to: TensorSpec(self._to, "int64", (None,))}
        if self._labels is not None:
            check_number(self._labels, classes)
            new[f"{self._to}_label"] = TensorSpec(f"{self._to}_label", "string", (None,))
        return given(self._options, specs, name, new)

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Find the best class of each row. Raises DataError for a class without a label."""
        name, scores = taken(self._options, results)
        best = np.argmax(np.asarray(scores), axis=-1).astype(np.int64)
        new: dict[str, Any] = {self._to: best}
        if self._labels is not None:
            new[f"{self._to}_label"] = look_up("argmax", self._labels, best)
        return given(self._options, results, name, new)

    @functools.cached_property
    def _labels(self) -> tuple[str, ...] | None:
        return None if self._options.labels is None else read_labels(self._options.labels)


class TopKOptions(StepOptions):
    """Scores to the k best classes."""

    k: int = Field(default=5, ge=1)
    """How many."""

    labels: ContentPath | None = None
    """Names of the classes: a text file, one per line, or JSON."""


class TopK:
    """The k best classes, best first, ties by class number: `<to>_index`, `<to>_score`, `<to>_label`."""

    Options = TopKOptions
    shorthand: ClassVar[str] = "k"

    def __init__(self, options: TopKOptions) -> None:
        self._options = options
        self._to = options.to or "top"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give fixed lists of k numbers, scores and (with labels) names."""
        name, spec = taken(self._options, specs)
        classes, k = vector_spec(spec).shape[1], self._options.k
        if classes is not None and k > classes:
            raise ContractError(f"k is {k}, and `{spec}` has only {classes} classes")
        new = {
            f"{self._to}_index": TensorSpec(f"{self._to}_index", "int32", (None, k)),
            f"{self._to}_score": TensorSpec(f"{self._to}_score", "float32", (None, k)),
        }
        if self._labels is not None:
            check_number(self._labels, classes)
            new[f"{self._to}_label"] = TensorSpec(f"{self._to}_label", "string", (None, k))
        return given(self._options, specs, name, new)

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Rank the classes of each row. Raises DataError for fewer classes than k."""
        name, column = taken(self._options, results)
        scores, k = float32(column), self._options.k
        if scores.shape[-1] < k:
            raise DataError(f"top_k: k is {k}, and {name!r} came with only {scores.shape[-1]} classes")
        # A stable sort of the negated scores: equal scores keep the order of their numbers.
        order = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, order, axis=-1)
        new: dict[str, Any] = {
            f"{self._to}_index": order.astype(np.int32),
            f"{self._to}_score": best.astype(np.float32),
        }
        if self._labels is not None:
            names = look_up("top_k", self._labels, order.reshape(-1))
            new[f"{self._to}_label"] = pa.FixedSizeListArray.from_arrays(names, k)
        return given(self._options, results, name, new)

    @functools.cached_property
    def _labels(self) -> tuple[str, ...] | None:
        return None if self._options.labels is None else read_labels(self._options.labels)


class ThresholdOptions(StepOptions):
    """A score to yes or no."""

    at: float = 0.5
    """Yes from this score on."""

    labels: tuple[str, str] | None = None
    """Words for [no, yes], instead of false and true."""


class Threshold:
    """score >= at: bool, or one of two labels. NaN is no."""

    Options = ThresholdOptions
    shorthand: ClassVar[str] = "at"

    def __init__(self, options: ThresholdOptions) -> None:
        self._options = options
        self._to = options.to or "positive"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give `positive`: bool of the same shape, or string for one score per row."""
        name, spec = taken(self._options, specs)
        new = TensorSpec(self._to, "bool", scores_spec(spec).shape)
        if self._options.labels is not None:
            row_spec(spec)
            new = TensorSpec(self._to, "string", (None,))
        return given(self._options, specs, name, {self._to: new})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Compare."""
        name, scores = taken(self._options, results)
        yes: Any = np.asarray(scores) >= self._options.at
        if self._options.labels is not None:
            yes = look_up("threshold", self._options.labels, yes.reshape(-1).astype(np.int64))
        return given(self._options, results, name, {self._to: yes})


class LabelsOptions(StepOptions):
    """Class numbers to names."""

    path: ContentPath | None = None
    """A text file with one name per line, or JSON (a list, or an object with `id2label`)."""

    names: tuple[str, ...] | None = None
    """The names themselves, instead."""

    @model_validator(mode="after")
    def _one(self) -> LabelsOptions:
        if (self.path is None) == (self.names is None):
            raise ValueError("needs either path or names")
        return self


class Labels:
    """Looks class numbers up; one out of range ends the run, because the labels are another model's."""

    Options = LabelsOptions
    shorthand: ClassVar[str] = "path"

    def __init__(self, options: LabelsOptions) -> None:
        self._options = options
        self._to = options.to or "label"

    def output_specs(self, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Give `label`, string."""
        name, spec = taken(self._options, specs)
        row_spec(spec)
        if not spec.dtype.startswith(("int", "uint")):
            raise ContractError(f"needs class numbers, and `{spec}` are none", hint="put argmax before it")
        assert self._names is not None
        return given(self._options, specs, name, {self._to: TensorSpec(self._to, "string", (None,))})

    def apply(self, results: Mapping[str, Column], inputs: Tensors) -> Mapping[str, Column]:  # noqa: ARG002 - the door's
        """Look the names up. Raises DataError for a class without one."""
        name, column = taken(self._options, results)
        found = look_up("labels", self._names, np.asarray(column).reshape(-1))
        return given(self._options, results, name, {self._to: found})

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        if self._options.names is not None:
            return self._options.names
        assert self._options.path is not None
        return read_labels(self._options.path)
