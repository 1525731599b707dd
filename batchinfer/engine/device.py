"""Where a batch is computed: queue it, then wait for *its* end and nothing else's.

On CUDA three streams overlap (`ring_pipeline.py`): batch n+1 is uploaded while n computes and n-1 is
downloaded, through buffers that are used in turn (`rings.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from batchinfer.crash import crash_point
from batchinfer.data import HostBatch, OutputBatch
from batchinfer.loader.prefetch import Bound, prefetch

if TYPE_CHECKING:
    from batchinfer.protocols import Backend

_AHEAD = 32


@dataclass(frozen=True, slots=True)
class InFlight:
    """A submitted batch: its results, or where they will be (`flight` is the pipeline's own).

    `restored` are the columns of a batch that was finished before, and that the device never sees;
    `isolated` is what came of a batch that failed at once; `slot` its place in the black box.
    """

    batch: HostBatch
    outputs: Mapping[str, Any]
    started: float
    seconds: float = 0.0
    flight: Any = None
    restored: tuple[Any, ...] | None = None
    isolated: OutputBatch | None = None
    slot: int = -1


class DevicePipeline(Protocol):
    """Queues batches on one device. `submit` does not wait; `collect` waits for one batch.

    `ahead` batches may be staged before they are submitted, in the same order.
    """

    ahead: int

    def stage(self, batch: HostBatch) -> HostBatch:
        """Bring a batch to where the device takes it from, in the thread that made it. Not needed, but
        `submit` is then spared the copy."""
        ...

    def discard(self, batch: HostBatch) -> None:
        """Forget a batch that was staged and will not be submitted."""
        ...

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue upload, model and download."""
        ...

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Wait for one batch and return its results in host memory. Device errors surface here."""
        ...


class CpuPipeline:
    """Computes in place: no copies, no queue."""

    def __init__(self, backend: Backend) -> None:
        self.ahead = _AHEAD
        self._backend = backend

    def stage(self, batch: HostBatch) -> HostBatch:
        """Return the batch: the model reads it where it is."""
        return batch

    def discard(self, batch: HostBatch) -> None:
        """Nothing was staged."""

    def submit(self, batch: HostBatch) -> InFlight:
        """Run the model."""
        started = time.perf_counter()
        outputs = self._backend.forward(batch.tensors) if len(batch.rows) else {}
        return InFlight(batch, outputs, started, time.perf_counter() - started)

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Return the results."""
        return OutputBatch(inflight.batch, inflight.outputs, inflight.seconds, started=inflight.started)


def open_pipeline(backend: Backend, device: str, *, host_bytes: int) -> DevicePipeline:
    """Return the pipeline for "cpu" or "cuda:N". Page-locked memory takes about `host_bytes` each way."""
    if not device.startswith("cuda"):
        return CpuPipeline(backend)
    from batchinfer.engine.cuda_runtime import CudaRuntime
    from batchinfer.engine.ring_pipeline import RingPipeline
    from batchinfer.engine.rings import RingSizes

    return RingPipeline(backend, CudaRuntime(device), RingSizes(host_bytes=host_bytes))


def crashing(submit: Callable[[HostBatch], InFlight]) -> Callable[[HostBatch], InFlight]:
    """Let tests end the process before and after a batch is submitted."""

    def call(batch: HostBatch) -> InFlight:
        """Queue a batch."""
        crash_point("infer.before")
        inflight = submit(batch)
        crash_point("infer.mid")
        return inflight

    return call


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

    def submitted() -> Generator[InFlight, None, None]:
        """Submit, and let the stages before end when this one does: an error holds on to all of them."""
        try:
            for batch in batches:
                yield submit(batch)
        finally:
            if isinstance(batches, Generator):
                batches.close()

    ahead = prefetch(submitted(), bound=Bound(depth, 1), size_of=lambda _: 0, name="launch")
    try:
        for inflight in ahead:
            yield collect(inflight)
    finally:
        ahead.close()
