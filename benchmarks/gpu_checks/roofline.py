"""What must a batch take at least on this device, and what does the model take?

The *floor* is what FLOP or bytes take at the ceilings that were measured here: bytes are weights, inputs and
results, once. *Layers* is the same layer by layer, where each reads and writes all of its numbers: what a
model takes that fuses nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from gpu_checks import works
from gpu_checks.bench import NO_TIME, Bench
from gpu_checks.machine import seconds

_TOKENS = 64
_LEAST_S = 5.0
_ROWS = {"resnet": ((256, 1024), (4,)), "minilm": ((256, 2048), (8,)), "bge-base": ((256, 1024), (4,))}
"""Rows of the batches that are timed: of a run, and of a tiny one. 16,384 tokens are 256 texts."""


Load: TypeAlias = Callable[[], Callable[[], Any]]
"""Loads a model; returns what computes a batch."""


class Cost(NamedTuple):
    """Of one layer for one row: FLOP, numbers read and written; and its weights."""

    flop: float
    moved: float
    weights: float


def measure(bench: Bench) -> None:
    """Time each model in each precision on batches that are on the device."""
    machine = bench.of("machine")
    sys.path.insert(0, str(bench.folder))
    for name, sizes in _ROWS.items():
        if bench.tiny and name == "bge-base":
            continue
        costs = costs_of(bench, name)
        for precision in bench.precisions:
            for rows in sizes[bench.tiny]:
                what = f"{name} {precision} {rows}"
                if bench.ends - time.monotonic() < _LEAST_S and not bench.tiny:
                    bench.note(what, NO_TIME)
                    continue
                for way, load in calls(bench, name, precision, rows).items():
                    with bench.attempt(f"roofline: {what} {way}"):
                        took = seconds(bench, load(), times=2 if bench.tiny else 5, rounds=3)
                        figures = held_against(machine, costs, name, precision, rows, took)
                        bench.note(f"{what} {way}", figures)
    if not bench.on_gpu:
        bench.needs_gpu(*(f"{name} {precision}" for name in _ROWS for precision in ("fp16", "bf16")))


def held_against(
    machine: Mapping[str, Any], costs: list[Cost], name: str, precision: str, rows: int, took: float
) -> dict[str, Any]:
    """Return FLOP, bytes, the floor and the time that a batch took."""
    size = 4 if precision == "fp32" else 2
    flop = sum(cost.flop for cost in costs) * rows
    weights = sum(cost.weights for cost in costs) * size
    # Images come as bytes, texts as int64; what leaves is float32.
    given = costs[0].moved if name == "resnet" else 16 * _TOKENS
    num_bytes = weights + (given + 4 * costs[-1].moved) * rows
    most, copies = works.ceiling(machine, precision), machine.get("copy_bytes_per_second")
    figures: dict[str, Any] = {
        "rows_per_second": round(rows / took, 1),
        "flop": round(flop),
        "bytes": round(num_bytes),
        "seconds": took,
        "flops": round(flop / took),
    }
    if most and copies:
        floor = max(flop / most, num_bytes / copies)
        layers = sum(
            max(cost.flop * rows / most, (cost.moved * rows + cost.weights) * size / copies)
            for cost in costs[1:-1]
        )
        figures |= {
            "bound_by": "compute" if flop / most >= num_bytes / copies else "memory",
            "floor_s": floor,
            "layers_s": layers,
            "times_floor": round(took / floor, 2),
            "of_ceiling": round(flop / took / most, 4),
        }
    return figures


def costs_of(bench: Bench, name: str) -> list[Cost]:
    """Return what each layer costs for one row, between what comes in and what goes out."""
    import torch

    model, given = network(bench, name)
    found: list[Cost] = []

    def count(module: Any, inputs: Any, output: Any) -> None:
        """Add a layer."""
        weight = getattr(module, "weight", None)
        dense = isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        flop = 2.0 * weight[0].numel() * output.numel() if dense and weight is not None else 0.0
        read = sum(value.numel() for value in inputs if isinstance(value, torch.Tensor))
        is_table = isinstance(module, torch.nn.Embedding)
        weights = 0 if weight is None or is_table else weight.numel()
        found.append(Cost(flop, read + output.numel(), weights))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.inference_mode():
        result = model(**given)
    for hook in hooks:
        hook.remove()
    first = Cost(0, sum(value.numel() for value in given.values()), 0)
    if name == "resnet":
        return [first, *found, Cost(0, result.numel(), 0)]
    shape = works.ENCODERS[name][bench.tiny]
    attention = Cost(4.0 * shape.width * _TOKENS**2, 4.0 * shape.width * _TOKENS, 0)
    return [first, *found, *[attention] * shape.layers, Cost(0, shape.width, 0)]


def network(bench: Bench, name: str) -> tuple[Any, dict[str, Any]]:
    """Return a network on the CPU, and one row for it."""
    import torch
    import transformers

    if name == "resnet":
        import networks

        side = works.SIDES[bench.tiny]
        return networks.resnet(**works.RESNET[bench.tiny]).eval(), {"pixels": torch.zeros(1, 3, side, side)}
    transformers.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(bench.folder / name, add_pooling_layer=False)
    return model.eval(), {"input_ids": torch.ones(1, _TOKENS, dtype=torch.int64)}


def calls(bench: Bench, name: str, precision: str, rows: int) -> dict[str, Load]:
    """Return the ways in which a backend computes a batch that is on the device."""
    if name == "resnet":
        side = works.SIDES[bench.tiny]
        pixels = np.random.default_rng(1).integers(0, 256, (rows, 3, side, side), np.uint8)
        batch = on_device(bench, {"pixels": pixels})
        return {
            way: partial(call_of, bench, works.resnet_model(bench, precision, **more), batch)
            for way, more in ways(bench).items()
        }
    ids = np.random.default_rng(1).integers(5, 1000, (rows, _TOKENS))
    batch = on_device(bench, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    found = {
        way: partial(call_of, bench, works.text_work(name, precision, **more)["model"], batch)
        for way, more in ways(bench).items()
    }
    if bench.on_gpu:
        ends = np.arange(0, rows * _TOKENS + 1, _TOKENS, dtype=np.int32)
        packed = {"input_ids": ids.reshape(-1), "position_ids": np.tile(np.arange(_TOKENS), rows)}
        batch = on_device(bench, {**packed, "cu_seqlens": ends})
        batch["max_seqlen"] = pa.array([_TOKENS])
        model = works.text_work(name, precision)["model"]
        found["packed"] = partial(call_of, bench, model, batch, packed=True)
    return found


def ways(bench: Bench) -> dict[str, dict[str, Any]]:
    """Return how a model is called: as it is, and on a GPU as a graph."""
    return {"plain": {}, **({"graphs": {"cuda_graphs": True}} if bench.on_gpu else {})}


def on_device(bench: Bench, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch where its model computes."""
    import torch

    if not bench.on_gpu:
        return batch
    return {name: torch.from_numpy(value).to(bench.device) for name, value in batch.items()}


def call_of(
    bench: Bench, model: dict[str, Any], batch: dict[str, Any], *, packed: bool = False
) -> Callable[[], Any]:
    """Load a backend as a worker does, and return what computes the batch."""
    import torch

    from batchinfer import registry

    backend = registry.load("backends", model["backend"])
    here = {**model, "path": str(bench.folder / model["path"])}
    loaded = backend(backend.Options(**here))
    loaded.load(bench.device, threads=torch.get_num_threads())
    if packed and loaded.packing() is None:
        raise RuntimeError(f"{model['path']} in {model['precision']} is not taken packed")
    return lambda: loaded.forward(batch)
