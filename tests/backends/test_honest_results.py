"""Results are the row's own: not the next batch's memory, not a wrapped number, not a neighbour's dice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchinfer import registry
from batchinfer.backends.hf_folder import check_weights
from batchinfer.backends.hf_tasks import probabilities
from batchinfer.errors import DataError, JobFileError

CODE = """
import torch

class Reusing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("out", torch.zeros(2))
    def forward(self, x):
        self.out[: len(x)] = x * 2
        return self.out[: len(x)]

class Wide(torch.nn.Module):
    def forward(self, x):
        return (x * 2**31).long()

class Tensors:
    inputs = {"x": "float32[?]"}
    outputs = {"y": "float32[?]", "z": "float32[?]"}
    def __init__(self):
        self.memory = torch.zeros(2)
    def __call__(self, batch):
        self.memory[: len(batch["x"])] = torch.from_numpy(batch["x"].copy()) * 2
        return {"y": self.memory[: len(batch["x"])], "z": [float(x) for x in batch["x"]]}
"""


@pytest.fixture(autouse=True)
def honest_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the models on the path."""
    (tmp_path / "honest_models.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "honest_models", raising=False)


def loaded(backend: str, **options: Any) -> Any:
    """Build and load a backend as a job would."""
    cls = registry.load("backends", backend)
    made = cls(cls.Options.model_validate_json(json.dumps({"backend": backend, **options})))
    made.load("cpu", threads=1)
    return made


def x(*values: float) -> dict[str, Any]:
    """Return one input."""
    return {"x": np.array(values, np.float32)}


def test_a_module_that_reuses_its_buffer() -> None:
    """The first batch's result is what it was after the second batch ran."""
    signature = {"inputs": {"x": "float32[?]"}, "outputs": {"output": "float32[?]"}}
    backend = loaded("torch", entry="honest_models:Reusing", signature=signature)
    first = backend.forward(x(1, 2))["output"]
    backend.forward(x(3, 4))
    assert first.tolist() == [2, 4]


def test_a_class_that_gives_tensors_and_lists() -> None:
    """Tensors of reused memory and lists come out as arrays of their own."""
    backend = loaded("python", entry="honest_models:Tensors")
    first = backend.forward(x(1, 2))
    backend.forward(x(3, 4))
    assert first["y"].tolist() == [2, 4]
    assert isinstance(first["z"], np.ndarray)


def test_a_number_that_does_not_fit_is_an_error() -> None:
    """A declared int32 does not silently wrap an int64; one that fits is taken."""
    signature = {"inputs": {"x": "float32[?]"}, "outputs": {"output": "int32[?]"}}
    backend = loaded("torch", entry="honest_models:Wide", signature=signature)
    assert backend.forward(x(0))["output"].tolist() == [0]
    with pytest.raises(DataError, match="gave 'output' as int64, which is no int32"):
        backend.forward(x(4))


def test_a_regression_keeps_its_numbers() -> None:
    """The output of a regression is no probability."""
    import torch

    logits = torch.tensor([[-0.5], [2.0]])
    assert probabilities(logits, problem="regression").tolist() == [[-0.5], [2.0]]
    assert 0 < probabilities(logits, problem=None)[0, 0] < 0.5


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    """Weights outside the model's folder are refused, also by way of an index."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"")
    index = {"weight_map": {"w": "../outside/w.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(JobFileError, match=r"names '\.\./outside/w\.safetensors', which is no file"):
        check_weights(tmp_path, allow_unsafe=False)
