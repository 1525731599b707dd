"""Batches through a ring pipeline on a lazy device, driven as a worker drives it, and models to run there."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchinfer.data import HostBatch, OutputBatch, Window
from batchinfer.engine.device import DevicePipeline
from batchinfer.engine.ring_pipeline import RingPipeline
from batchinfer.engine.rings import RingSizes
from batchinfer.testing import LazyDevice

WINDOW: Any = Window(span=None, carried=None, good=np.empty(0, np.int64), failed={}, num_batches=1)  # type: ignore[arg-type]


class Model:
    """y = 2 x + ids, and the row's ids again, from a batch's `x` (rows, 3) and `ids` (rows, width)."""

    inputs: Sequence[Any] = ()
    outputs: Sequence[Any] = ()

    def load(self, device: str, *, threads: int) -> None:
        """Nothing is loaded."""

    def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute a batch."""
        x, ids = tensors["x"], tensors["ids"]
        return {"y": 2 * x + ids[:, :1], "same": ids}

    def close(self) -> None:
        """Nothing is freed."""


class ReusingModel(Model):
    """A model that gives the same memory with every batch, as a CUDA graph does."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute a batch into memory that the next one overwrites."""
        results = super().forward(tensors)
        y = self._memory.setdefault(results["y"].shape, results["y"].copy())
        np.copyto(y, results["y"])
        return {"y": y, "same": results["same"]}


def host_batch(tensors: dict[str, Any]) -> HostBatch:
    """Return a batch of these columns."""
    return HostBatch(WINDOW, np.arange(len(next(iter(tensors.values())))), tensors)


def make_batches(rng: random.Random, count: int) -> list[HostBatch]:
    """Return batches of random lengths and widths; each has numbers of its own."""
    batches = []
    for number in range(count):
        rows, width = rng.randint(1, 6), rng.choice([2, 5])
        x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) + 1000 * number
        ids = np.arange(rows * width, dtype=np.int64).reshape(rows, width) + 7000 * number
        batches.append(host_batch({"x": x, "ids": ids}))
    return batches


def draw_sizes(rng: random.Random) -> RingSizes:
    """Return ring sizes that do not hide each other's waits."""
    return RingSizes(
        pinned_in=rng.randint(1, 4),
        device_in=rng.randint(1, 4),
        device_out=rng.randint(1, 4),
        pinned_out=rng.randint(1, 8),
        # From one batch at a time, so that slots take each other's buffers, to all of them.
        host_bytes=rng.choice([1, 3, 100]) << 16,
        device_bytes=rng.choice([1, 3, 100]) << 16,
    )


def drive(
    pipeline: DevicePipeline, batches: Sequence[HostBatch], *, ahead: int, flying: int
) -> list[OutputBatch]:
    """Stage at most `ahead` batches before the one submitted, submit `flying` before the one collected."""
    staged: deque[HostBatch] = deque()
    inflight: deque[Any] = deque()
    outputs = []
    for batch in batches:
        staged.append(pipeline.stage(batch))
        if len(staged) > ahead:
            inflight.append(pipeline.submit(staged.popleft()))
        if len(inflight) > flying:
            outputs.append(pipeline.collect(inflight.popleft()))
    for batch in staged:
        inflight.append(pipeline.submit(batch))
        if len(inflight) > flying:
            outputs.append(pipeline.collect(inflight.popleft()))
    outputs.extend(pipeline.collect(flight) for flight in inflight)
    return outputs


def run(
    rng: random.Random,
    *,
    device: type[LazyDevice] = LazyDevice,
    pipeline: type[RingPipeline] = RingPipeline,
    model: Model | None = None,
    count: int = 24,
) -> list[tuple[HostBatch, OutputBatch]]:
    """Run batches over rings of random sizes, on a device that is lazy in one of its two ways."""
    sizes = draw_sizes(rng)
    batches = make_batches(rng, count)
    rings = pipeline(model or Model(), device(is_racing=rng.random() < 0.5), sizes)
    # Once one by one: a lazy device tries each shape when it first sees it, and waits then.
    drive(rings, batches, ahead=0, flying=0)
    ahead, flying = rng.randint(0, sizes.pinned_in - 1), rng.randint(0, sizes.pinned_out - 1)
    return list(zip(batches, drive(rings, batches, ahead=ahead, flying=flying), strict=True))


def num_wrong(results: Sequence[tuple[HostBatch, OutputBatch]]) -> int:
    """Count the batches whose results are not what the model gives for them."""
    wrong = 0
    for batch, output in results:
        expected = Model().forward(batch.tensors)
        wrong += not all(np.array_equal(output.tensors[name], value) for name, value in expected.items())
    return wrong
