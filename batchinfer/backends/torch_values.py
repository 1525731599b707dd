"""Columns to torch tensors and back, names for what a model returns, and torch's errors in our words."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from batchinfer.errors import BatchinferError, DataError
from batchinfer.user_code import device_error, place, told


def to_tensor(name: str, value: Any, device: Any) -> Any:
    """Return a column as a tensor on `device`. Raises DataError for text.

    Shares memory with an ndarray on the CPU; a read-only one is copied, because torch could write to it.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise DataError(f"input {name!r} is no tensor, but a column of {value.type}")
    return torch.from_numpy(value if value.flags.writeable else value.copy()).to(device)


def to_host(tensor: Any) -> Any:
    """Return a CPU tensor as an ndarray, bfloat16 as float32; a tensor on a device as it is."""
    import torch

    if tensor.device.type != "cpu":
        return tensor
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def named_values(returned: Any) -> dict[str, Any]:
    """Name what a model returned: `output`, `output_0`, `output_1`, ..., or its own keys.

    Only tensors count: caches, and what is None, are left out.
    """
    import torch

    if isinstance(returned, torch.Tensor):
        return {"output": returned}
    if isinstance(returned, Mapping):
        pairs = list(returned.items())
    elif isinstance(returned, Sequence):
        pairs = [(f"output_{at}", value) for at, value in enumerate(returned)]
    else:
        pairs = list(getattr(returned, "__dict__", {}).items())
    return {str(name): value for name, value in pairs if isinstance(value, torch.Tensor)}


def run_error(error: Exception, tensors: Mapping[str, Any]) -> BatchinferError:
    """Return what a failed batch means: a DeviceError, or a DataError with the batch's shapes."""
    shapes = ", ".join(
        f"{name} {list(getattr(value, 'shape', (len(value),)))}" for name, value in tensors.items()
    )
    if fault := device_error(error, f"the device failed on a batch of {shapes}: {_reason(error)}"):
        return fault
    return DataError(f"the model refused a batch of {shapes}: {_reason(error)}", where=place(error))


@contextmanager
def putting_on(device: Any, what: str) -> Iterator[None]:
    """Turn a device that gives out while a model is put on it into a DeviceError."""
    try:
        yield
    except Exception as error:
        if fault := device_error(error, f"{what} cannot be put on {device}: {told(error)}"):
            raise fault from error
        raise


def _reason(error: Exception) -> str:
    """Return an error's class, and its first line where torch itself wrote it: any other may quote rows."""
    import torch

    last = traceback.extract_tb(error.__traceback__)[-1:]
    torchs_own = last and last[0].filename.startswith(str(Path(torch.__file__).parent))
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if torchs_own and first else type(error).__name__
