"""From a torch module to an ONNX file, quietly."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def export(
    model: torch.nn.Module,
    path: Path,
    *,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    shapes: Mapping[str, Mapping[int, Any]],
    external_data: bool = False,
) -> None:
    """Trace the module with example inputs, passed by name, and write it.

    `shapes` gives the axes that may vary. The file appears whole or not at all, unless
    `external_data` puts the weights beside it, as `<file>.data`.
    """
    import torch

    # The exporter warns about libraries that it could use, and about its own internals.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={name: dict(axes) for name, axes in shapes.items()},
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise SystemExit(f"torch did not export {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if external_data:
        program.save(path, external_data=True)
        return
    partial = path.with_suffix(".partial")
    program.save(partial, external_data=False)
    partial.replace(path)
