"""Steps by name, specs by shape, and the exam that every step's results pass."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from batchinfer import registry, tensors
from batchinfer.data import TensorSpec


def f32(values: Any) -> Any:
    """Return values as float32."""
    return np.array(values, np.float32)


def make(name: str, **options: Any) -> Any:
    cls = registry.load("postprocessors", name)
    return cls(cls.Options.model_validate_json(json.dumps(options)))


def spec(name: str, *shape: int | None, dtype: str = "float32") -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, dtype, (None, *shape))}


def check(
    step: Any, results: dict[str, Any], specs: dict[str, TensorSpec], inputs: dict[str, Any] | None = None
) -> Any:
    """Apply a step, and hold what it gives against what it said it would give."""
    said = step.output_specs(specs)
    before = {name: np.array(value, copy=True) for name, value in results.items()}
    found = step.apply(results, inputs or {})
    assert list(found) == list(said)
    for name, column in found.items():
        array = tensors.to_arrow(column, tensors.arrow_type(said[name]))
        assert array.type == tensors.arrow_type(said[name])
    for name, value in before.items():
        np.testing.assert_array_equal(value, results[name])
    return found
