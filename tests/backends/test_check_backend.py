"""Every backend passes the exam that we ship, and the exam fails a backend for each broken promise."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchinfer.backends.onnx_session import OnnxBackend, OnnxOptions
from batchinfer.backends.simulated import SimulatedBackend, SimulatedOptions
from batchinfer.backends.torch_module import TorchBackend, TorchOptions, TorchSignature
from batchinfer.backends.type_text import Signature
from batchinfer.backends.user_class import PythonBackend, PythonOptions
from batchinfer.data import TensorSpec
from batchinfer.testing import check_backend


@pytest.fixture(autouse=True)
def _own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the modules beside this one be imported, as the folder of a job file is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("batch", ["rows", 4, 1])
def test_onnx_passes(make_onnx: Any, batch: Any) -> None:
    """An ONNX model, with an open or a fixed batch axis."""
    options = OnnxOptions(path=make_onnx(batch=batch))
    check_backend(lambda: OnnxBackend(options))


def test_torch_passes(tmp_path: Path) -> None:
    """A module with weights."""
    import importlib

    from safetensors.torch import save_file

    save_file(importlib.import_module("torch_models").Linear().state_dict(), tmp_path / "w.safetensors")
    signature = TorchSignature(inputs={"x": "float32[?, 4]"})
    options = TorchOptions(
        entry="torch_models:Linear", path=str(tmp_path / "w.safetensors"), signature=signature
    )
    check_backend(lambda: TorchBackend(options))


def test_a_users_class_passes() -> None:
    """A class that uses its buffer again."""
    check_backend(lambda: PythonBackend(PythonOptions(entry="own_models:Doubler")))


def test_simulated_passes() -> None:
    """Numbers and texts in, numbers and texts out."""
    signature = Signature(
        inputs={"x": "float32[?, 2]", "s": "string"}, outputs={"y": "float64[?, 3]", "t": "string"}
    )
    options = SimulatedOptions(seconds_per_batch=0.0, signature=signature)
    check_backend(lambda: SimulatedBackend(options))


class Honest:
    """y = 2 x; the broken ones below change one thing."""

    def __init__(self) -> None:
        self.inputs: Sequence[TensorSpec] = (TensorSpec("x", "float32", (None,)),)
        self.outputs: Sequence[TensorSpec] = (TensorSpec("y", "float32", (None,)),)

    def load(self, device: str, *, threads: int) -> None:
        """Do nothing."""

    def forward(self, tensors: Any) -> Any:
        """Return 2 x."""
        return {"y": tensors["x"] * np.float32(2)}

    def close(self) -> None:
        """Do nothing."""


class Reuses(Honest):
    """Returns the same memory every time."""

    buffer = np.zeros(10, np.float32)

    def forward(self, tensors: Any) -> Any:
        """Write into the buffer."""
        view = self.buffer[: len(tensors["x"])]
        view[:] = tensors["x"] * 2
        return {"y": view}


class Mixes(Honest):
    """Lets rows see each other."""

    def forward(self, tensors: Any) -> Any:
        """Return x less the batch's mean."""
        return {"y": tensors["x"] - tensors["x"].mean()}


class Wavers(Honest):
    """Gives something else each time, by less than the tolerance."""

    calls = 0

    def forward(self, tensors: Any) -> Any:
        """Add a little more with each call."""
        self.calls += 1
        return {"y": tensors["x"] + np.float32(1e-6 * self.calls)}


class Overwrites(Honest):
    """Changes what it is given."""

    def forward(self, tensors: Any) -> Any:
        """Double in place."""
        tensors["x"] *= 2
        return {"y": tensors["x"].copy()}


class Widens(Honest):
    """Gives another dtype than it says."""

    def forward(self, tensors: Any) -> Any:
        """Return float64."""
        return {"y": tensors["x"].astype(np.float64)}


class Shortens(Honest):
    """Loses a row."""

    def forward(self, tensors: Any) -> Any:
        """Return one row less."""
        return {"y": tensors["x"][1:].copy()}


class Renames(Honest):
    """Gives another name than it says."""

    def forward(self, tensors: Any) -> Any:
        """Return z."""
        return {"z": tensors["x"]}


class Fixes(Honest):
    """Declares a batch axis of five rows."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs = (TensorSpec("y", "float32", (5,)),)


def test_an_honest_backend_passes() -> None:
    """The backend that the broken ones are made from is fine."""
    check_backend(Honest)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Reuses, "was overwritten by a later batch"),
        (Mixes, "differ when they are run by themselves"),
        (Wavers, "differs when the same batch is run again"),
        (Widens, "`y: float32[?]` came as float64"),
        (Shortens, "has 4 rows for 5"),
        (Renames, "results are ['z'], declared are ['y']"),
        (Fixes, "must begin with the batch axis"),
    ],
)
def test_each_broken_promise_is_found(make: Callable[[], Any], reason: str) -> None:
    """The exam says which promise was broken."""
    with pytest.raises(AssertionError, match=re.escape(reason)):
        check_backend(make)


def test_writing_to_inputs_is_found() -> None:
    """Inputs are views of memory that others read: writing to them fails at once."""
    with pytest.raises(ValueError, match="read-only"):
        check_backend(Overwrites)
