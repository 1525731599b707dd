"""What the rings ask of a device: streams, events, buffers, asynchronous copies, and the model on a stream.

`cuda_runtime.py` is the real one; `batchinfer.testing.LazyDevice` does everything as late as it may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from batchinfer.engine.rings import Piece
    from batchinfer.protocols import Backend


class Event(Protocol):
    """A point in a stream."""

    def query(self) -> bool:
        """Tell whether everything before it is done."""
        ...

    def synchronize(self) -> None:
        """Wait for everything before it. Errors of the device surface here."""
        ...


class Stream(Protocol):
    """Work that a device does in order, after whoever queued it has gone on."""

    def record(self, *, timing: bool = False) -> Event:
        """Return the point after all that is queued now."""
        ...

    def wait(self, event: Event) -> None:
        """Let what is queued from now on begin after `event`. Does not wait here."""
        ...


class HostBuffer(Protocol):
    """Host memory that the device reads and writes by itself: bytes, uint8 of shape (size,)."""

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The bytes."""
        ...


class Runtime(Protocol):
    """A device. What has a `stream` is only queued; memory lives as long as somebody refers to it."""

    def stream(self) -> Stream:
        """Return a new stream, which waits for no other."""
        ...

    def host_buffer(self, num_bytes: int) -> HostBuffer:
        """Allocate page-locked memory."""
        ...

    def device_buffer(self, num_bytes: int) -> Any:
        """Allocate memory of the device that no queued work of any stream touches."""
        ...

    def recycle(self, buffer: HostBuffer) -> None:
        """Take note that nobody needs what a buffer holds."""
        ...

    def upload(self, into: Any, source: HostBuffer, num_bytes: int, stream: Stream) -> None:
        """Copy the first bytes of a host buffer to those of a device buffer."""
        ...

    def download(self, into: HostBuffer, source: Any, num_bytes: int, stream: Stream) -> None:
        """Copy the first bytes of a device buffer to those of a host buffer."""
        ...

    def view(self, buffer: Any, piece: Piece) -> Any:
        """Return a piece of a device buffer as the backend takes it."""
        ...

    def forward(self, backend: Backend, tensors: Mapping[str, Any], stream: Stream) -> Mapping[str, Any]:
        """Run the model on a stream; results are on the device, or are columns in host memory."""
        ...

    def describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """Return dtype and shape that a result has in host memory; None where it is there already."""
        ...

    def store(self, into: Any, piece: Piece, value: Any, stream: Stream) -> None:
        """Copy a result into a piece of a device buffer."""
        ...

    def elapsed_s(self, first: Event, second: Event) -> float:
        """Return the seconds from one timing event that has passed to another."""
        ...
