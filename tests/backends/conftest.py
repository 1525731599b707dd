"""Tiny models, made where a test needs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeOnnx = Callable[..., str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def weights() -> dict[str, Any]:
    """W of shape (4, 3) and b of shape (3,), float32, of the linear models y = x @ W + b."""
    random = np.random.default_rng(7)
    return {
        "W": random.standard_normal((4, 3)).astype(np.float32),
        "b": random.standard_normal(3).astype(np.float32),
    }


@pytest.fixture
def make_onnx(tmp_path: Path, weights: dict[str, Any]) -> MakeOnnx:
    """Return a function that writes y = x @ W + b as an ONNX file with this batch axis."""

    def make(
        *, batch: int | str | None = "rows", out: int | str | None = None, external: bool = False
    ) -> str:
        float_ = TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("x", float_, [batch, 4])]
        outputs = [helper.make_tensor_value_info("y", float_, [batch if out is None else out, 3])]
        nodes = [helper.make_node("Gemm", ["x", "W", "b"], ["y"])]
        initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
        graph = helper.make_graph(nodes, "linear", inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / "model.onnx"
        onnx.save(model, path, save_as_external_data=external, location="model.data", size_threshold=0)
        return str(path)

    return make
