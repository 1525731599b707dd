"""Which of onnxruntime's providers a job asks for, and why one did not load."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchinfer.errors import DeviceError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
CUDA_PROVIDERS = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "tensorrt",
    "NvTensorRTRTXExecutionProvider": "nv_tensorrt_rtx",
}
WAY_OUT = "`batchinfer doctor` shows what is missing; model.providers: [cpu] computes on the CPU"


def wanted_providers(asked: Sequence[str] | None, device: str) -> list[str]:
    """Return the full provider names asked for. Raises DeviceError for a GPU's on a CPU."""
    default = ("cuda",) if device.startswith("cuda") else ("cpu",)
    wanted = [PROVIDERS.get(name, name) for name in asked or default]
    if device == "cpu" and on_cuda(wanted):
        name = next(name for name in wanted if name in CUDA_PROVIDERS)
        why = _why_not(name) or "compute.devices gives this worker the CPU"
        raise DeviceError(f"model.providers asks for {name}, but there is no GPU here: {why}", hint=WAY_OUT)
    return wanted


def on_cuda(providers: Sequence[str]) -> bool:
    """Tell whether any of them computes on an NVIDIA GPU."""
    return any(name in CUDA_PROVIDERS for name in providers)


def check_loaded(session: Any, wanted: Sequence[str]) -> None:
    """Raise DeviceError where onnxruntime left out a provider, which it does without an error."""
    loaded = session.get_providers()
    for name in wanted:
        if name not in loaded:
            why = _why_not(name) or "its library loads, but finds no usable GPU (driver, CUDA version)"
            raise DeviceError(f"onnxruntime could not load {name}: {why}", hint=WAY_OUT)


def _why_not(provider: str) -> str | None:
    """Load a provider's library as onnxruntime does, and return what the linker says, or None."""
    spec = find_spec("onnxruntime")
    folder = Path(spec.origin if spec and spec.origin else "").parent / "capi"
    library = folder / f"libonnxruntime_providers_{CUDA_PROVIDERS.get(provider, provider)}.so"
    if provider in CUDA_PROVIDERS and not library.is_file():
        return "this onnxruntime is built without it (install onnxruntime-gpu)"
    try:
        if library.is_file():
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None
