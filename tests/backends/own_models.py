"""Classes that the tests name as `own_models:...`, as a job names its own code."""

from typing import Any

import numpy as np
import pyarrow as pa


class Doubler:
    """y = factor * x, from a buffer that is used again and again."""

    inputs = {"x": "float32[?]", "name": "string"}
    outputs = {"y": "float32[?]", "greeting": "string[?]"}

    def __init__(self, factor: float = 2.0, path: str | None = None) -> None:
        self.factor = factor
        self.path = path
        self.buffer = np.zeros(100, np.float32)
        self.events: list[str] = []

    def load(self, device: str) -> None:
        """Note the device."""
        self.events.append(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the buffer's front, and a text."""
        view = self.buffer[: len(batch["x"])]
        np.multiply(batch["x"], self.factor, out=view)
        return {"y": view, "greeting": pa.array([f"hi {name}" for name in batch["name"]]), "more": 1}

    def close(self) -> None:
        """Note the end."""
        self.events.append("closed")


class Plain:
    """Says nothing about itself; does what `kind` says."""

    def __init__(self, kind: str = "fine") -> None:
        self.kind = kind

    def __call__(self, batch: dict[str, Any]) -> Any:
        """Return x, or something else, or fail."""
        if self.kind == "fail":
            raise ValueError("cannot do that")
        if self.kind == "memory":
            raise MemoryError
        if self.kind == "torch":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"fine": {"y": batch["x"]}, "list": [1], "other": {"z": batch["x"]}}[self.kind]


class Nothing:
    """Cannot be called."""


class Broken(Plain):
    """Cannot load."""

    def load(self, device: str) -> None:
        """Fail."""
        raise OSError("no weights")
