"""Where a batch is computed: queue it, then wait for *its* end and nothing else's.

On CUDA three streams overlap: batch n+1 is uploaded while n computes and n-1 is downloaded. Events
order them. An in-flight batch holds every buffer that its copies and kernels use, so the allocator
cannot hand one out again before the event after its last use has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from batchinfer.data import HostBatch, OutputBatch
from batchinfer.loader.prefetch import Bound, prefetch

if TYPE_CHECKING:
    from batchinfer.protocols import Backend


@dataclass(frozen=True, slots=True)
class InFlight:
    """A submitted batch: its results, the event after them, and the buffers kept alive until then.

    `restored` are the columns of a batch that was finished before, and that the device never sees.
    """

    batch: HostBatch
    outputs: Mapping[str, Any]
    started: float
    seconds: float = 0.0
    done: Any = None
    kept: tuple[Any, ...] = ()
    restored: tuple[Any, ...] | None = None


class DevicePipeline(Protocol):
    """Queues batches on one device. `submit` does not wait; `collect` waits for one batch."""

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue upload, model and download."""
        ...

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Wait for one batch and return its results in host memory. Device errors surface here."""
        ...


class CpuPipeline:
    """Computes in place: no copies, no queue."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def submit(self, batch: HostBatch) -> InFlight:
        """Run the model."""
        started = time.perf_counter()
        outputs = self._backend.forward(batch.tensors) if len(batch.rows) else {}
        return InFlight(batch, outputs, started, time.perf_counter() - started)

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Return the results."""
        return OutputBatch(inflight.batch, inflight.outputs, inflight.seconds, started=inflight.started)


class CudaPipeline:
    """Three streams on one GPU."""

    def __init__(self, backend: Backend, device: str) -> None:
        import torch

        self._torch = torch
        self._backend = backend
        self._device = torch.device(device)
        self._upload, self._compute, self._download = (torch.cuda.Stream(self._device) for _ in range(3))

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue upload, model and download on their streams."""
        torch = self._torch
        if not len(batch.rows):
            return InFlight(batch, {}, time.perf_counter())
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        hosts = {name: self._pinned(column) for name, column in batch.tensors.items()}
        with torch.cuda.stream(self._upload):
            inputs = {name: self._to_device(host) for name, host in hosts.items()}
            uploaded = self._upload.record_event()
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(uploaded)
            begin.record(self._compute)
            results = self._backend.forward(inputs)
            end.record(self._compute)
        with torch.cuda.stream(self._download):
            self._download.wait_event(end)
            outputs = {name: self._to_host(result) for name, result in results.items()}
            done = self._download.record_event()
        kept = (hosts, inputs, results, begin, end)
        return InFlight(batch, outputs, time.perf_counter(), 0.0, done, kept)

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Wait for this batch's download; release its buffers."""
        if inflight.done is None:
            return OutputBatch(inflight.batch, {}, 0.0)
        inflight.done.synchronize()
        begin, end = inflight.kept[-2:]
        outputs = {name: self._to_numpy(value) for name, value in inflight.outputs.items()}
        return OutputBatch(inflight.batch, outputs, begin.elapsed_time(end) / 1000)

    def _pinned(self, column: Any) -> Any:
        """Copy to page-locked memory, from which the device reads by itself. Strings stay as they are."""
        if not hasattr(column, "__array_interface__"):
            return column
        return self._torch.from_numpy(column).pin_memory()

    def _to_device(self, host: Any) -> Any:
        if not isinstance(host, self._torch.Tensor):
            return host
        return host.to(self._device, non_blocking=True)

    def _to_host(self, result: Any) -> Any:
        if not isinstance(result, self._torch.Tensor) or not result.is_cuda:
            return result
        host = self._torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        return host.copy_(result, non_blocking=True)

    def _to_numpy(self, value: Any) -> Any:
        if not isinstance(value, self._torch.Tensor):
            return value
        # NumPy has no bfloat16.
        return (value.float() if value.dtype is self._torch.bfloat16 else value).numpy()


def open_pipeline(backend: Backend, device: str) -> DevicePipeline:
    """Return the pipeline for "cpu" or "cuda:N"."""
    return CudaPipeline(backend, device) if device.startswith("cuda") else CpuPipeline(backend)


def overlap(
    submit: Callable[[HostBatch], InFlight],
    collect: Callable[[InFlight], OutputBatch],
    batches: Iterable[HostBatch],
    *,
    depth: int,
) -> Generator[OutputBatch, None, None]:
    """Submit from a thread of its own, at most `depth` batches ahead of the one that is collected.

    Results come in submission order, each as soon as it is there, also while no further batch comes.
    """
    submitted = (submit(batch) for batch in batches)
    ahead = prefetch(submitted, bound=Bound(depth, 1), size_of=lambda _: 0, name="launch")
    try:
        for inflight in ahead:
            yield collect(inflight)
    finally:
        ahead.close()
