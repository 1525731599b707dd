"""The device of a worker as torch knows it, or an error that says why there is none."""

from __future__ import annotations

from typing import Any

from batchinfer.errors import DeviceError

_WAY_OUT = "`batchinfer doctor` shows what is missing; compute.devices: cpu computes on the CPU"


def torch_device(name: str) -> Any:
    """Return torch's device of "cpu" or "cuda:N". Raises DeviceError where torch cannot use it."""
    import torch

    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if torch.version.cuda is None:
            raise DeviceError(f"{name}: torch {torch.__version__} is built without CUDA", hint=_WAY_OUT)
        if (device.index or 0) >= count:
            error = DeviceError(f"there is no {name}: torch can use {count} GPUs", hint=_WAY_OUT)
            # Where there are others, this one may have been lost.
            error.fault = "NoDevice" if count else ""
            raise error
    return device
