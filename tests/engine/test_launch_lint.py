"""What is queued must not wait: the words that stop a stream are not in the files that launch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "batchinfer"

LAUNCH = ("engine/ring_pipeline.py", "engine/rings.py", "engine/cuda_runtime.py")
QUEUED = {
    "backends/onnx_binding.py": {"run", "_tensor"},
    "backends/torch_module.py": {"forward", "_run", "_returned", "_ready"},
    "backends/hf_model.py": {"_embed"},
    "backends/hf_encoder.py": {"vectors", "packed_vectors", "_vectors", "_packed_vectors"},
    "backends/hf_packing.py": {"attend", "_on_gpu", "run", "pooled"},
    "backends/torch_shapes.py": {"__call__"},
    "backends/hf_tasks.py": {"pooled"},
}
"""Functions of files that also have others, which load a model or make text of its results."""

STOPS = {"item", "cpu", "tolist", "cuda", "nonzero", "record_stream"}
CROSSES = {"to", "pin_memory"}
EVENTS = ("event", "done", "_anchor")


def stops(tree: ast.AST, words: set[str]) -> Iterator[str]:
    """Yield the calls that wait for a device, or that allocate beside the rings."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        if name in words or (name == "synchronize" and not owner.endswith(EVENTS)):
            yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("where", LAUNCH)
def test_launching_waits_for_nothing_but_events(where: str) -> None:
    """Trap 8: no implicit wait, and no copy that torch's allocator would have to follow between streams."""
    tree = ast.parse((ROOT / where).read_text())
    assert list(stops(tree, STOPS | CROSSES)) == []


@pytest.mark.parametrize("where", QUEUED)
def test_models_are_queued(where: str) -> None:
    """A forward pass of numbers has no word in it that waits; `.to(dtype)` stays on its stream."""
    names = QUEUED[where]
    found = [
        node
        for node in ast.walk(ast.parse((ROOT / where).read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    assert {node.name for node in found} == names
    assert [line for node in found for line in stops(node, STOPS)] == []


@pytest.mark.parametrize(
    "source",
    [
        "x = batch.to(device, non_blocking=True)",
        "x.cuda()",
        "loss.item()",
        "y.cpu()",
        "rows.tolist()",
        "torch.cuda.synchronize()",
        "self._stream.raw.synchronize()",
        "tensor.record_stream(stream)",
    ],
)
def test_the_lint_sees_a_wait(source: str) -> None:
    """Each word is found."""
    assert list(stops(ast.parse(source), STOPS | CROSSES))


def test_the_lint_lets_events_pass() -> None:
    """To wait for one event is what the pipeline is about."""
    assert not list(stops(ast.parse("flight.done.synchronize(); self.event.synchronize()"), STOPS))
