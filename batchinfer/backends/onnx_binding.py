"""ONNX on CUDA: tensors stay on the device, and nothing waits for it.

The session computes on a stream of its own, because a session's stream is chosen when it is loaded.
Events order that stream after the caller's (uploads) and the caller's after it (downloads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from batchinfer.backends.onnx_signature import OnnxSignature


class CudaBinding:
    """Runs a session on torch CUDA tensors. `options` is passed on with every run."""

    def __init__(self, session: Any, signature: OnnxSignature, *, stream: Any, options: Any) -> None:
        self._session = session
        self._signature = signature
        self._stream = stream
        self._options = options

    def run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Queue one batch: contiguous tensors of the session's dtypes in, tensors out."""
        import torch

        device = self._stream.device
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        binding = self._session.io_binding()
        for spec in self._signature.inputs:
            tensor = given[spec.name]
            binding.bind_input(
                spec.name, "cuda", device.index, np.dtype(spec.dtype), shapes[spec.name], tensor.data_ptr()
            )
        results: dict[str, Any] = {}
        for spec in self._signature.outputs:
            shape = self._signature.output_shape(spec.name, shapes)
            if shape is None:
                binding.bind_output(spec.name, "cuda", device.index)
                continue
            # From the caller's stream: when the caller drops it, what reuses it is queued there, after us.
            results[spec.name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=device)
            pointer = results[spec.name].data_ptr()
            binding.bind_output(spec.name, "cuda", device.index, np.dtype(spec.dtype), shape, pointer)
        caller = torch.cuda.current_stream(device)
        self._stream.wait_stream(caller)
        self._session.run_with_iobinding(binding, self._options)
        caller.wait_stream(self._stream)
        for spec, value in zip(self._signature.outputs, binding.get_outputs(), strict=True):
            if spec.name not in results:
                results[spec.name] = _tensor(value, spec.dtype)
        return {spec.name: results[spec.name] for spec in self._signature.outputs}


def _tensor(value: Any, dtype: str) -> Any:
    """View a result that the session allocated. The tensor keeps its memory alive."""
    import torch

    tensor = torch.from_dlpack(value._ortvalue.to_dlpack())  # noqa: SLF001 - the only door to it
    # DLPack has no booleans as onnxruntime writes it.
    return tensor.to(torch.bool) if dtype == "bool" else tensor
