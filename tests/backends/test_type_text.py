"""Tensor types as users write them, and keys that a backend does nothing with."""

import subprocess
import sys
from typing import Any

import pytest

from batchinfer import registry
from batchinfer.backends.type_text import Signature, parse_spec
from batchinfer.data import TensorSpec


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        ("float32", "float32", (None,)),
        ("float32[?]", "float32", (None,)),
        (" int64[?,?] ", "int64", (None, None)),
        ("uint8[?, 3, 224, 224]", "uint8", (None, 3, 224, 224)),
        ("string[?]", "string", (None,)),
        ("any", "any", (None,)),
        ("list<string>[?]", "list<string>", (None,)),
        ("struct<a: float32[3], b: string>", "struct<a: float32[3], b: string>", (None,)),
    ],
)
def test_a_type_is_what_it_says(text: str, dtype: str, shape: Any) -> None:
    """Dtype, and sizes with None for ?."""
    assert parse_spec("x", text) == TensorSpec("x", dtype, shape)


@pytest.mark.parametrize(
    "text", ["", "float", "float32[]", "float32[3]", "float32[?, -1]", "float32[?, 3", "float32[?, 1.5]"]
)
def test_what_is_no_type_is_refused(text: str) -> None:
    """With an example of what can be written."""
    with pytest.raises(ValueError, match="write float32"):
        parse_spec("x", text)


def test_outputs_need_a_type() -> None:
    """An output becomes a column, so `any` is not enough."""
    with pytest.raises(ValueError, match="y: an output needs a type of its own"):
        Signature(inputs={"x": "any"}, outputs={"y": "any"})


@pytest.mark.parametrize(
    ("backend", "key", "value"),
    [
        ("onnx", "entry", "a:b"),
        ("transformers", "entry", "a:b"),
        ("simulated", "path", "model.onnx"),
        ("simulated", "precision", "fp16"),
        ("python", "precision", "bf16"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(backend: str, key: str, value: str) -> None:
    """A key of the section that the backend does not use is an error, not ignored."""
    with pytest.raises(ValueError, match=f"is not for `backend: {backend}`"):
        registry.load("backends", backend).Options(**{key: value})


@pytest.mark.parametrize("backend", ["onnx", "torch", "transformers", "python", "simulated"])
def test_constructing_imports_nothing_heavy(backend: str) -> None:
    """Reading a job and constructing its backend imports no model library."""
    code = (
        "import sys\n"
        "from batchinfer import registry\n"
        f"cls = registry.load('backends', {backend!r})\n"
        "cls(cls.Options()).close()\n"
        "print(sorted({'torch', 'onnxruntime', 'transformers', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
