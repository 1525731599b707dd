"""The rings' device on CUDA, through torch. Nothing here waits for more than one event.

torch's caching allocators do not order what several streams do with a buffer. They need not: a ring's
buffer is given back only when its last event has passed, and device buffers come from a stream on which
nothing ever runs, so that no model's freed memory is among them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer.backends.torch_device import torch_device
from batchinfer.engine.host_memory import map_memory
from batchinfer.errors import DataError

if TYPE_CHECKING:
    from batchinfer.engine.rings import Piece
    from batchinfer.engine.runtime import Event, HostBuffer, Stream
    from batchinfer.protocols import Backend


class CudaStream:
    """A stream of one device. `raw` is torch's."""

    def __init__(self, device: Any) -> None:
        import torch

        self._event = torch.cuda.Event
        # One of torch's pool: it does not wait for the default stream, nor that for it.
        self.raw = torch.cuda.Stream(device)

    def record(self, *, timing: bool = False) -> Event:
        """Return the point after all that is queued now. Whoever waits for it sleeps, and does not spin."""
        event: Event = self._event(enable_timing=timing, blocking=True)
        self.raw.record_event(event)
        return event

    def wait(self, event: Event) -> None:
        """Let what is queued from now on begin after `event`."""
        self.raw.wait_event(event)


class PinnedBuffer:
    """Page-locked memory. `array` are its bytes, and `tensor` the same bytes for torch."""

    def __init__(self, array: np.ndarray[Any, Any], tensor: Any) -> None:
        self.array = array
        self.tensor = tensor


class CudaRuntime:
    """One CUDA device. Raises DeviceError where torch cannot use it."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self._device = torch_device(device)
        self._nowhere = torch.cuda.Stream(self._device)
        # A model of float32 is computed in float32: cuDNN would shorten what its convolutions get to 19 bits.
        torch.backends.cudnn.allow_tf32 = False

    def stream(self) -> CudaStream:
        """Return a new stream."""
        return CudaStream(self._device)

    def host_buffer(self, num_bytes: int) -> PinnedBuffer:
        """Map memory and register it with CUDA.

        Where CUDA does not register it (a limit on locked memory, an old kernel), torch allocates instead.
        """
        array = map_memory(num_bytes)
        address = array.ctypes.data
        cudart = self._torch.cuda.cudart()
        with self._torch.cuda.device(self._device):
            found = cudart.cudaHostRegister(address, num_bytes, 0)
            if found != cudart.cudaError.success:
                return self._allocated(num_bytes)
        buffer = PinnedBuffer(array, self._torch.from_numpy(array))
        # Not at the end of the process: CUDA may be gone by then, and the memory goes anyway.
        weakref.finalize(buffer, _unregister, cudart, address, array).atexit = False
        return buffer

    def device_buffer(self, num_bytes: int) -> Any:
        """Allocate memory that no queued work touches: bytes, of shape (num_bytes,)."""
        with self._torch.cuda.stream(self._nowhere):
            return self._torch.empty(num_bytes, dtype=self._torch.uint8, device=self._device)

    def recycle(self, buffer: HostBuffer) -> None:
        """Let the next batch overwrite what a buffer holds."""

    def upload(self, into: Any, source: HostBuffer, num_bytes: int, stream: Stream) -> None:
        """Queue a copy to the device."""
        assert isinstance(stream, CudaStream)
        assert isinstance(source, PinnedBuffer)
        with self._torch.cuda.stream(stream.raw):
            into[:num_bytes].copy_(source.tensor[:num_bytes], non_blocking=True)

    def download(self, into: HostBuffer, source: Any, num_bytes: int, stream: Stream) -> None:
        """Queue a copy to the host."""
        assert isinstance(stream, CudaStream)
        assert isinstance(into, PinnedBuffer)
        with self._torch.cuda.stream(stream.raw):
            into.tensor[:num_bytes].copy_(source[:num_bytes], non_blocking=True)

    def view(self, buffer: Any, piece: Piece) -> Any:
        """Return a piece of a device buffer as a tensor."""
        flat = buffer[piece.offset : piece.offset + piece.num_bytes]
        return flat.view(getattr(self._torch, piece.dtype.name)).view(piece.shape)

    def forward(self, backend: Backend, tensors: Mapping[str, Any], stream: Stream) -> Mapping[str, Any]:
        """Run the model with `stream` as the current one."""
        assert isinstance(stream, CudaStream)
        with self._torch.cuda.stream(stream.raw):
            results: Mapping[str, Any] = backend.forward(tensors)
        return {name: self._on_host(value) for name, value in results.items()}

    def describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """Return dtype and shape of a tensor on the device; bfloat16, which NumPy lacks, becomes float32.

        Raises DataError for any other dtype that NumPy lacks.
        """
        if not isinstance(value, self._torch.Tensor):
            return None
        name = str(value.dtype).removeprefix("torch.")
        dtype = _numpy_dtype("float32" if name == "bfloat16" else name)
        if dtype is None:
            raise DataError(
                f"the model gave {name}, which cannot leave the device",
                hint="let the model return float32, or another type that NumPy has",
            )
        return dtype, tuple(value.shape)

    def store(self, into: Any, piece: Piece, value: Any, stream: Stream) -> None:
        """Queue a copy of a tensor into a piece of a device buffer, which also converts it."""
        assert isinstance(stream, CudaStream)
        with self._torch.cuda.stream(stream.raw):
            self.view(into, piece).copy_(value, non_blocking=True)

    def elapsed_s(self, first: Event, second: Event) -> float:
        """Return the seconds between two timing events that have passed."""
        milliseconds: float = first.elapsed_time(second)  # type: ignore[attr-defined]
        return milliseconds / 1000

    def _on_host(self, value: Any) -> Any:
        """Return a tensor in host memory as an array, and anything else as it is."""
        if not isinstance(value, self._torch.Tensor) or value.is_cuda:
            return value
        return (value.float() if value.dtype is self._torch.bfloat16 else value).numpy()

    def _allocated(self, num_bytes: int) -> PinnedBuffer:
        # CUDA reports the refusal once more, to the next kernel: let it be one that nobody needs.
        with contextlib.suppress(RuntimeError):
            self._torch.ones(1, device=self._device)
        tensor = self._torch.empty(num_bytes, dtype=self._torch.uint8, pin_memory=True)
        return PinnedBuffer(tensor.numpy(), tensor)


def _numpy_dtype(name: str) -> np.dtype[Any] | None:
    """Return a dtype of NumPy's own: a package that is loaded beside it may have registered others."""
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    return dtype if dtype.isbuiltin == 1 else None


def _unregister(cudart: Any, address: int, memory: Any) -> None:
    """Unlock memory, and only then let it go."""
    cudart.cudaHostUnregister(address)
    del memory
