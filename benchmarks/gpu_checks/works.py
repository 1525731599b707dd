"""The works: what each job reads and computes, and how many FLOP a row takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu_checks.bench import Bench

VOCABULARY = 30_522
LONGEST = 256
RESNET: tuple[dict[str, Any], dict[str, Any]] = (
    {"blocks": [3, 4, 6, 3], "width": 64},
    {"blocks": [1, 1, 1, 1], "width": 16},
)
"""Arguments of the convolutional network: ResNet-50, and the one of a tiny run."""

SIDES = (224, 64)
_STATISTICS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_READERS = 12


class Shape(NamedTuple):
    """Of an encoder."""

    width: int
    layers: int
    heads: int


ENCODERS = {
    "minilm": (Shape(384, 6, 12), Shape(64, 2, 4)),
    "bge-base": (Shape(768, 12, 12), Shape(128, 2, 4)),
}
"""Shapes of the encoders: the real one, and the one of a tiny run."""


def text_work(name: str, precision: str, source: str = "texts", **model: Any) -> dict[str, Any]:
    """Return the sections of a job that embeds texts."""
    return {
        "input": {"path": f"{source}/"},
        "preprocess": [
            {
                "tokenize": {
                    "column": "text",
                    "tokenizer": "tokenizer.json",
                    "max_length": LONGEST,
                    "outputs": ["input_ids", "attention_mask"],
                }
            }
        ],
        "model": {
            "backend": "transformers",
            "path": name,
            "task": "embedding",
            "inputs_are": "tokens",
            "normalize": False,
            "precision": precision,
            **model,
        },
    }


def resnet_model(bench: Bench, precision: str, *, dtype: str = "uint8", **more: Any) -> dict[str, Any]:
    """Return the model section of a job that classifies images."""
    side = SIDES[bench.tiny]
    return {
        "backend": "torch",
        "entry": "networks:resnet",
        "args": RESNET[bench.tiny],
        "path": "resnet.safetensors",
        "precision": precision,
        "channels_last": bench.on_gpu,
        "signature": {
            "inputs": {"pixels": f"{dtype}[?, 3, {side}, {side}]"},
            "outputs": {"logits": "float32[?, 1000]"},
        },
        **more,
    }


def pixels_work(bench: Bench, precision: str, source: str = "pixels", **model: Any) -> dict[str, Any]:
    """Return the sections of a job that classifies images stored as pixels."""
    return {"input": {"path": f"{source}/"}, "model": resnet_model(bench, precision, **model)}


def jpeg_work(bench: Bench, precision: str, source: str = "jpeg", *, decode: str = "cpu") -> dict[str, Any]:
    """Return the sections of a job that classifies images stored as JPEG."""
    side = SIDES[bench.tiny]
    image = {"column": "jpeg", "size": side, "to": "pixels", "decode": decode, **_STATISTICS}
    # The default is four; a GPU has a dozen cores beside it.
    compute = {"readers": _READERS} if bench.on_gpu else {}
    return {
        "input": {"path": f"{source}/"},
        "preprocess": [{"image": image}],
        "model": resnet_model(bench, precision, dtype="float32"),
        "compute": compute,
    }


def text_lengths(folder: Path, texts: Sequence[str]) -> tuple[float, float]:
    """Return the mean number of tokens of some texts, and the mean of its square."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    return sum(counts) / len(counts), sum(count * count for count in counts) / len(counts)


def encoder_flop(shape: Shape, tokens: float, squared: float) -> float:
    """Return the FLOP of a row of an encoder: dense layers by token, attention by pair of tokens."""
    dense = 2 * (4 * shape.width**2 + 8 * shape.width**2) * tokens
    return shape.layers * (dense + 4 * shape.width * squared)


def conv_flop(model: Any, side: int) -> float:
    """Return the FLOP of an image: what convolutions and dense layers multiply and add."""
    import torch

    total = 0.0

    def count(module: Any, _: Any, output: Any) -> None:
        """Add a layer."""
        nonlocal total
        weight = module.weight
        per_output = 2 * weight[0].numel()
        total += per_output * output.numel()

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total


def ceiling(machine: Mapping[str, Any], precision: str) -> float | None:
    """Return the FLOP/s that this device reached in that precision, if it was measured."""
    found = machine.get("gemm_flops", {})
    value = found.get(precision) if isinstance(found, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def flop_of(bench: Bench) -> dict[str, float]:
    """Return the FLOP of a row of each network, as the section `inputs` counted them."""
    found: dict[str, float] = json.loads((bench.folder / "flop.json").read_text())
    return found


def write_flop(bench: Bench, texts: Sequence[str], resnet: Any) -> None:
    """Count the FLOP of a row of each network, for the sections that come."""
    tokens, squared = text_lengths(bench.folder, texts)
    found = {name: encoder_flop(shapes[bench.tiny], tokens, squared) for name, shapes in ENCODERS.items()}
    found["resnet"] = conv_flop(resnet.eval(), SIDES[bench.tiny])
    (bench.folder / "flop.json").write_text(json.dumps(found))
    bench.note("tokens_per_text", round(tokens, 2))
    bench.note("flop_per_row", {name: round(value) for name, value in found.items()})
