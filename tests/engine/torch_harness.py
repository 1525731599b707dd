"""The harness's model for torch, and a CUDA device with delays in its streams."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

from batchinfer.engine.cuda_runtime import CudaRuntime, CudaStream, PinnedBuffer
from batchinfer.testing.lazy_device import POISON
from tests.engine.harness import Model

CYCLES = 20_000_000
"""Of the device's clock: about ten milliseconds."""


class TorchModel(Model):
    """The harness's model on tensors."""

    def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a batch."""
        x, ids = tensors["x"], tensors["ids"]
        return {"y": (2 * x.double() + ids[:, :1]), "same": ids}


class ReusingTorchModel(TorchModel):
    """Gives the same memory with every batch, as a CUDA graph does."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, ...], Any] = {}

    def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a batch into memory that the next one overwrites."""
        results = super().forward(tensors)
        shape = tuple(results["y"].shape)
        y = self._memory.setdefault(shape, torch.empty_like(results["y"]))
        y.copy_(results["y"])
        return {"y": y, "same": results["same"]}


class Delayed(CudaRuntime):
    """A CUDA device that is slow in one of its streams, and poisons host memory that holds nothing."""

    def __init__(self, slow: str) -> None:
        self.streams: list[CudaStream] = []
        self._slow = slow
        super().__init__("cuda:0")

    def stream(self) -> CudaStream:
        """Return a new stream, and remember it."""
        self.streams.append(super().stream())
        return self.streams[-1]

    def sleep(self, what: str, stream: Any) -> None:
        """Let a stream do nothing for a while."""
        if what == self._slow:
            with torch.cuda.stream(stream.raw):
                torch.cuda._sleep(CYCLES)

    def recycle(self, buffer: Any) -> None:
        """Poison a buffer."""
        buffer.array.fill(POISON)

    def upload(self, into: Any, source: Any, num_bytes: int, stream: Any) -> None:
        """Copy up, late."""
        self.sleep("upload", stream)
        super().upload(into, source, num_bytes, stream)

    def download(self, into: Any, source: Any, num_bytes: int, stream: Any) -> None:
        """Copy down, late."""
        self.sleep("download", stream)
        super().download(into, source, num_bytes, stream)

    def forward(self, backend: Any, tensors: Mapping[str, Any], stream: Any) -> Mapping[str, Any]:
        """Run the model, late."""
        self.sleep("model", stream)
        return super().forward(backend, tensors, stream)


class ElsewhereOnCuda(Delayed):
    """Copies results on the stream of the downloads, and lets go of the model's memory at once."""

    def store(self, into: Any, piece: Any, value: Any, stream: Any) -> None:
        """Queue the copy on another stream, after the model."""
        other = self.streams[2]
        other.wait(stream.record())
        self.sleep("download", other)
        super().store(into, piece, value, other)


class KeptElsewhereOnCuda(ElsewhereOnCuda):
    """The same, but holds on to the model's memory."""

    def store(self, into: Any, piece: Any, value: Any, stream: Any) -> None:
        """Queue the copy on another stream, and keep the result for good."""
        super().store(into, piece, value, stream)
        self.kept = [*getattr(self, "kept", []), value]


def pinned(buffer: PinnedBuffer) -> bool:
    """Tell whether torch sees that memory is page-locked, also in the middle of it."""
    return bool(buffer.tensor.is_pinned() and buffer.tensor[256:].is_pinned())


def draw_slow(rng: random.Random) -> str:
    """Return the stream that is slow."""
    return rng.choice(["upload", "model", "download"])
