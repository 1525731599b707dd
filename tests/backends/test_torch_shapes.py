"""A model that is made ready for each shape of batches computes what it computed before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchinfer.backends.torch_module import TorchBackend, TorchOptions, TorchSignature
from batchinfer.backends.torch_shapes import Shaped, graphs_on

torch = pytest.importorskip("torch")


class Recorder:
    """Captures as a CUDA graph does: what is repeated reads and writes the same memory every time."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record work."""
        self.captured += 1
        results = work()

        def again() -> None:
            """Do it again, into what it returned."""
            results["y"].copy_(work()["y"])

        return again, results


def double(x: Any, *, times: Any) -> dict[str, Any]:
    """Return x as often as asked."""
    return {"y": x * times}


def test_a_shape_is_captured_once() -> None:
    """Batches of one shape reuse what was captured for it, and each is computed from its own numbers; a
    constant is part of the shape."""
    recorder = Recorder()
    shaped = Shaped(double, compiled=False, capture=recorder)
    for count in (3, 5, 3, 5, 3):
        x = torch.rand(count, 2)
        assert torch.equal(shaped(x, times=torch.full((count, 1), 2.0))["y"], 2 * x)
    assert recorder.captured == 2
    assert torch.equal(shaped(x, times=3)["y"], 3 * x)
    assert torch.equal(shaped(x, times=4)["y"], 4 * x)
    assert recorder.captured == 4


def test_inputs_are_not_held() -> None:
    """A captured batch is a copy: what becomes of its memory later changes nothing."""
    shaped = Shaped(double, compiled=False, capture=Recorder())
    x = torch.ones(3, 2)
    shaped(x, times=2)
    x.fill_(7)
    assert torch.equal(shaped(torch.ones(3, 2), times=2)["y"], torch.full((3, 2), 2.0))


def test_more_shapes_are_computed_all_the_same() -> None:
    """After 32 shapes, another one is computed without being captured."""
    recorder = Recorder()
    shaped = Shaped(double, compiled=False, capture=recorder)
    for count in range(1, 40):
        x = torch.rand(count, 2)
        assert torch.equal(shaped(x, times=2)["y"], 2 * x)
    assert recorder.captured == 32


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("g++") is None, reason="no compiler")
def test_a_model_is_really_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile: true` compiles a module for each of two shapes, and gives its numbers; on a CPU there are no
    graphs."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    signature = TorchSignature(inputs={"x": "float32[?, 4]"})
    rows = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        options = TorchOptions(
            entry="torch_models:Linear", signature=signature, compile=compiled, cuda_graphs=True
        )
        backend = TorchBackend(options)
        backend.load("cpu", threads=1)
        assert backend.few_shapes == compiled
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        found.append([backend.forward({"x": rows[:count]})["output"] for count in (7, 3, 7)])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == (2 if compiled else 0)
    for plain, compiled_result in zip(*found, strict=True):
        np.testing.assert_allclose(compiled_result, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_cuda_graphs() -> None:
    """On a GPU, a captured model computes each batch from its own numbers, of every shape in turn."""
    layer = torch.nn.Linear(8, 3).cuda()
    shaped = Shaped(layer, compiled=False, capture=graphs_on(torch.device("cuda:0")))
    with torch.inference_mode():
        for count in (4, 9, 4, 1, 9, 4):
            x = torch.rand(count, 8, device="cuda")
            torch.testing.assert_close(shaped(x).clone(), layer(x), rtol=1e-4, atol=1e-5)
