"""A device in host memory that does everything as late as it may: what runs ahead of its data is seen.

On a GPU a buffer that is used too early holds the wrong bytes once in a million batches. Here it does so
every time: a copy or a forward pass happens only when somebody waits for it, or for what comes after it;
memory holds poison before it is first written, and again when nobody needs what it holds.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from batchinfer.engine.rings import Piece
    from batchinfer.engine.runtime import Event, HostBuffer, Stream
    from batchinfer.protocols import Backend

POISON = 0xA5
"""The byte in memory that holds nothing."""

_Kinds: TypeAlias = "dict[str, tuple[np.dtype[Any], tuple[int, ...]]] | None"


class LazyEvent:
    """A point in a lazy stream. `at` is when it passed, in seconds of `time.perf_counter`."""

    def __init__(self, stream: LazyStream, position: int) -> None:
        self.stream = stream
        self.position = position
        self.at = 0.0

    def query(self) -> bool:
        """Tell whether everything before it is done. Does not bring it about."""
        return self.stream.done >= self.position

    def synchronize(self) -> None:
        """Do everything before it now, in this thread. Raises the first error of its stream."""
        self.stream.run_to(self.position)


class LazyStream:
    """Work that waits until somebody asks for it. Streams of one device share a lock."""

    def __init__(self, device: LazyDevice) -> None:
        self.done = 0
        self.queued = 0
        self._device = device
        self._work: deque[Callable[[], None] | LazyEvent] = deque()
        self._error: BaseException | None = None
        self._is_running = False

    def record(self, *, timing: bool = False) -> LazyEvent:
        """Return the point after all that is queued now."""
        del timing
        with self._device.lock:
            event = LazyEvent(self, self.queued + 1)
            self.enqueue(lambda: setattr(event, "at", time.perf_counter()))
            return event

    def wait(self, event: Event) -> None:
        """Let what is queued from now on begin after `event`."""
        assert isinstance(event, LazyEvent)
        self.enqueue(event)

    def enqueue(self, work: Callable[[], None] | LazyEvent) -> None:
        """Queue some work, or a wait for an event."""
        with self._device.lock:
            self._work.append(work)
            self.queued += 1

    def run_to(self, position: int) -> None:
        """Do what is queued up to a position. Raises the first error, now and ever after."""
        with self._device.lock:
            was_running, self._is_running = self._is_running, True
            try:
                while self.done < position and self._error is None:
                    self._step()
            finally:
                self._is_running = was_running
            if self._error is not None:
                raise self._error

    def run_ahead(self) -> None:
        """Do what waits for nothing that is not done."""
        while self._work and self._error is None and not self._is_running:
            first = self._work[0]
            if isinstance(first, LazyEvent) and not first.query():
                return
            self._do()

    def _step(self) -> None:
        first = self._work[0]
        if isinstance(first, LazyEvent):
            try:
                first.synchronize()
            except BaseException as error:
                self._error = error
                raise
        elif self._device.is_racing:
            for stream in self._device.streams:
                if stream is not self:
                    stream.run_ahead()
        self._do()

    def _do(self) -> None:
        work = self._work.popleft()
        try:
            if not isinstance(work, LazyEvent):
                work()
        except BaseException as error:  # noqa: BLE001 - raised where somebody waits
            self._error = error
        self.done += 1


class LazyBuffer:
    """Memory, full of poison. `array` are its bytes, uint8 of shape (size,)."""

    def __init__(self, num_bytes: int) -> None:
        self.array = np.full(num_bytes, POISON, np.uint8)


class LazyTensor:
    """A result of a model that has not run. Its memory is the stream's again once nobody refers to it."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], stream: LazyStream) -> None:
        self.dtype = dtype
        self.shape = shape
        # What is queued refers to the memory, and not to the tensor: as a kernel does.
        self.memory = [_poisoned(dtype, shape)]
        weakref.finalize(self, stream.enqueue, _Poisoning(self.memory)).atexit = False


class _Poisoning:
    def __init__(self, memory: list[np.ndarray[Any, Any]]) -> None:
        self._memory = memory

    def __call__(self) -> None:
        self._memory[0] = _poisoned(self._memory[0].dtype, self._memory[0].shape)


class LazyDevice:
    """The `Runtime` of the rings (see `engine/runtime.py`), for backends that are loaded on "cpu".

    `is_racing`: before a stream does anything, all others get as far as they may. Waits that are missing
    between two streams show in one of the two orders, or in both.

    What a forward pass returns must have shapes that follow from its inputs': it is tried with zeros
    when a shape first comes. A backend that returns text (or lists) waits for its inputs, as it must on
    a GPU. The thread that waits is the one that computes, one at a time.
    """

    def __init__(self, *, is_racing: bool = False) -> None:
        self.is_racing = is_racing
        self.lock = threading.RLock()
        self.streams: list[LazyStream] = []
        self._tried: dict[Any, _Kinds] = {}

    def stream(self) -> LazyStream:
        """Return a new stream."""
        self.streams.append(LazyStream(self))
        return self.streams[-1]

    def host_buffer(self, num_bytes: int) -> LazyBuffer:
        """Allocate memory for the host's side."""
        return LazyBuffer(num_bytes)

    def device_buffer(self, num_bytes: int) -> LazyBuffer:
        """Allocate memory for the device's side."""
        return LazyBuffer(num_bytes)

    def recycle(self, buffer: HostBuffer) -> None:
        """Poison a buffer that holds nothing any more."""
        buffer.array.fill(POISON)

    def upload(self, into: Any, source: HostBuffer, num_bytes: int, stream: Stream) -> None:
        """Queue a copy to the device."""
        _queue(stream, lambda: np.copyto(into.array[:num_bytes], source.array[:num_bytes]))

    def download(self, into: HostBuffer, source: Any, num_bytes: int, stream: Stream) -> None:
        """Queue a copy to the host."""
        _queue(stream, lambda: np.copyto(into.array[:num_bytes], source.array[:num_bytes]))

    def view(self, buffer: Any, piece: Piece) -> np.ndarray[Any, Any]:
        """Return a piece of a device buffer. The backend may read it while it computes."""
        view = piece.of(buffer.array)
        view.setflags(write=False)
        return view

    def forward(self, backend: Backend, tensors: Mapping[str, Any], stream: Stream) -> Mapping[str, Any]:
        """Queue a forward pass. Results are LazyTensors, or columns where the backend gives text."""
        assert isinstance(stream, LazyStream)
        kinds = self._try(backend, tensors, stream)
        if kinds is None:
            stream.record().synchronize()
            return backend.forward(tensors)
        results = {name: LazyTensor(*kind, stream) for name, kind in kinds.items()}
        memories = {name: result.memory for name, result in results.items()}

        def compute() -> None:
            """Run the model on what its inputs hold now."""
            found = backend.forward(tensors)
            for name, memory in memories.items():
                assert isinstance(found[name], np.ndarray)
                assert found[name].shape == memory[0].shape, f"the shape of {name!r} depends on its numbers"
                memory[0] = found[name]

        stream.enqueue(compute)
        return results

    def describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """Return dtype and shape of a LazyTensor."""
        return (value.dtype, value.shape) if isinstance(value, LazyTensor) else None

    def store(self, into: Any, piece: Piece, value: LazyTensor, stream: Stream) -> None:
        """Queue a copy of a result into a piece of a device buffer."""
        memory = value.memory
        _queue(stream, lambda: np.copyto(piece.of(into.array), memory[0]))

    def elapsed_s(self, first: Event, second: Event) -> float:
        """Return the seconds between two events that have passed."""
        assert isinstance(first, LazyEvent)
        assert isinstance(second, LazyEvent)
        return second.at - first.at

    def _try(self, backend: Backend, tensors: Mapping[str, Any], stream: LazyStream) -> _Kinds:
        """Return dtype and shape of what the backend gives for zeros; None where it gives other columns."""
        key = tuple(
            (name, getattr(column, "shape", len(column)), str(getattr(column, "dtype", "")))
            for name, column in tensors.items()
        )
        with self.lock:
            if key not in self._tried:
                # The model may keep its results in memory of its own: none may be on its way now.
                stream.record().synchronize()
                zeros = {
                    name: np.zeros(column.shape, column.dtype) if isinstance(column, np.ndarray) else column
                    for name, column in tensors.items()
                }
                found = backend.forward(zeros)
                is_numbers = all(isinstance(value, np.ndarray) for value in found.values())
                self._tried[key] = (
                    {name: (value.dtype, value.shape) for name, value in found.items()}
                    if is_numbers
                    else None
                )
            return self._tried[key]


def _queue(stream: Stream, work: Callable[[], None]) -> None:
    assert isinstance(stream, LazyStream)
    stream.enqueue(work)


def _poisoned(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.full(num_bytes, POISON, np.uint8).view(dtype).reshape(shape)
