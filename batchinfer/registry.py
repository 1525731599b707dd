"""Names in a job file to classes, imported only when asked for.

Adding a component: one file, one line here. Outsiders register through the entry point groups
`batchinfer.sources`, `.preprocessors`, `.backends`, `.postprocessors` and `.sinks`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from batchinfer.errors import JobFileError

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "sources": {
        "parquet": "batchinfer.sources.parquet:ParquetSource",
        "jsonl": "batchinfer.sources.jsonl:JsonlSource",
        "csv": "batchinfer.sources.csv_text:CsvSource",
        "arrow": "batchinfer.sources.arrow_ipc:ArrowSource",
        "files": "batchinfer.sources.files:FilesSource",
    },
    "preprocessors": {
        "columns": "batchinfer.preprocess.columns:Columns",
        "tokenize": "batchinfer.preprocess.tokenize_text:Tokenize",
        "image": "batchinfer.preprocess.image:Image",
        "prompt": "batchinfer.preprocess.prompt:Prompt",
        "python": "batchinfer.preprocess.user_function:Python",
    },
    "backends": {
        "onnx": "batchinfer.backends.onnx_session:OnnxBackend",
        "torch": "batchinfer.backends.torch_module:TorchBackend",
        "transformers": "batchinfer.backends.hf_model:TransformersBackend",
        "python": "batchinfer.backends.user_class:PythonBackend",
        "simulated": "batchinfer.backends.simulated:SimulatedBackend",
    },
    "postprocessors": {
        "argmax": "batchinfer.postprocess.classes:Argmax",
        "softmax": "batchinfer.postprocess.elementwise:Softmax",
        "sigmoid": "batchinfer.postprocess.elementwise:Sigmoid",
        "top_k": "batchinfer.postprocess.classes:TopK",
        "threshold": "batchinfer.postprocess.classes:Threshold",
        "labels": "batchinfer.postprocess.classes:Labels",
        "mean_pool": "batchinfer.postprocess.pool:MeanPool",
        "cls_pool": "batchinfer.postprocess.pool:ClsPool",
        "normalize": "batchinfer.postprocess.pool:Normalize",
        "cast": "batchinfer.postprocess.elementwise:Cast",
        "rename": "batchinfer.postprocess.names:Rename",
        "python": "batchinfer.postprocess.user_function:Python",
    },
    "sinks": {
        "parquet": "batchinfer.sinks.parquet:ParquetSink",
        "jsonl": "batchinfer.sinks.jsonl:JsonlSink",
    },
}

_SINGULAR = {
    "sources": "input format",
    "preprocessors": "preprocess step",
    "backends": "backend",
    "postprocessors": "postprocess step",
    "sinks": "output format",
}


def names(kind: str) -> list[str]:
    """Every registered name of a kind, built in or from an installed package."""
    from importlib.metadata import entry_points  # late: it takes a while

    outside = {point.name for point in entry_points(group=f"batchinfer.{kind}")}
    return sorted(outside | BUILT_IN[kind].keys())


def unknown(kind: str, name: str) -> str:
    """Say that a name is not registered, and which ones are."""
    known = names(kind)
    near = get_close_matches(name, known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {_SINGULAR[kind]} {name!r}{guess} (known: {', '.join(known)})"


def load(kind: str, name: str) -> Any:
    """Import the class registered under a name. Raises JobFileError for a name that is not."""
    target = BUILT_IN[kind].get(name)
    if target is None:
        from importlib.metadata import entry_points

        for point in entry_points(group=f"batchinfer.{kind}", name=name):
            return point.load()
        raise JobFileError(unknown(kind, name))
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
