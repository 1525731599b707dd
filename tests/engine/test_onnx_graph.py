"""Trap 10: a session that replays a graph reads host memory once, and never again."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from batchinfer.backends import onnx_session
from batchinfer.backends.onnx_binding import CudaBinding
from batchinfer.backends.onnx_session import OnnxOptions
from batchinfer.backends.onnx_signature import OnnxSignature
from batchinfer.data import TensorSpec

X = TensorSpec("x", "float32", (None, 3))
Y = TensorSpec("y", "float32", (None, 3))


def memory(pointer: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """View numbers at an address."""
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(pointer)).reshape(shape)


class GraphBinding:
    """What is bound where."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[str, int, tuple[int, ...]]] = {}
        self.outputs: dict[str, tuple[int, tuple[int, ...]]] = {}

    def bind_input(
        self, name: str, device: str, index: Any, dtype: Any, shape: tuple[int, ...], pointer: int
    ) -> None:
        """Bind an address."""
        self.inputs[name] = (device, pointer, shape)

    def bind_output(
        self, name: str, device: str, index: Any, dtype: Any, shape: tuple[int, ...], pointer: int
    ) -> None:
        """Bind an address."""
        assert device == "cuda"
        self.outputs[name] = (pointer, shape)

    def get_outputs(self) -> list[None]:
        """Return as many values as there are outputs."""
        return [None] * len(self.outputs)


class GraphSession:
    """y = 2 x. The first run captures: what lay in host memory then is what every later run reads."""

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self._captured: dict[str, np.ndarray[Any, Any]] = {}

    def io_binding(self) -> GraphBinding:
        """Return an empty binding."""
        return GraphBinding()

    def run_with_iobinding(self, binding: GraphBinding, options: Any) -> None:
        """Replay."""
        self.said.append("run")
        device, pointer, shape = binding.inputs["x"]
        x = memory(pointer, shape)
        if device == "cpu":
            x = self._captured.setdefault("x", x.copy())
        memory(*binding.outputs["y"])[...] = 2 * x


class Stream:
    """A stream that says whom it waits for."""

    device = torch.device("cpu")

    def __init__(self, name: str, said: list[str]) -> None:
        self.name = name
        self._said = said

    def wait_stream(self, other: Stream) -> None:
        """Note it."""
        self._said.append(f"{self.name} waits for {other.name}")


class OnHost(CudaBinding):
    """The wrong version: leaves inputs where they are, and lets the session find them."""

    def run(self, given: Any) -> dict[str, Any]:
        """Run with inputs that are bound to host memory."""
        session = self._session
        real = session.io_binding

        def io_binding() -> GraphBinding:
            binding: GraphBinding = real()
            bind = binding.bind_input
            binding.bind_input = lambda name, _, *rest: bind(name, "cpu", *rest)  # type: ignore[method-assign]
            return binding

        self._session = SimpleNamespace(io_binding=io_binding, run_with_iobinding=session.run_with_iobinding)
        try:
            return super().run(given)
        finally:
            self._session = session


@pytest.mark.parametrize(("kind", "is_right"), [(CudaBinding, True), (OnHost, False)])
def test_every_run_reads_its_inputs(
    kind: type[CudaBinding], is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that come in the same slot are each computed; bound to host memory, the first would be again
    and again."""
    said: list[str] = []
    caller, own = Stream("the caller", said), Stream("the session", said)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: caller)
    signature = OnnxSignature((X,), (Y,), None, {"in x": ("n", 3), "out y": ("n", 3)})
    binding = kind(GraphSession(said), signature, stream=own, options=None)
    slot = torch.zeros(4, 3)
    found = []
    for number in range(3):
        slot.fill_(number)
        found.append(binding.run({"x": slot})["y"][0, 0].item())
    assert (found == [0, 2, 4]) is is_right
    assert said[:3] == ["the session waits for the caller", "run", "the caller waits for the session"]


def test_sessions_capture_no_graph() -> None:
    """Addresses change from slot to slot, so that a captured graph would read another batch."""
    stream = SimpleNamespace(device=torch.device("cuda", 0), cuda_stream=7)
    for name in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        chosen = onnx_session._provider_options(OnnxOptions(path="m.onnx"), name, stream)
        assert chosen["user_compute_stream"] == "7"
        assert not [key for key in chosen if "graph" in key]
