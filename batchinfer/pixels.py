"""Pixels that travel as bytes, and become numbers where the model is: a quarter of the copies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from batchinfer.data import Tensors, TensorSpec
    from batchinfer.protocols import Backend

_KEY = b"pixels"


@dataclass(frozen=True, slots=True)
class Pixels:
    """How bytes become float32: (byte * scale - mean) / std, channel by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = False

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return what a column's field carries with it."""
        return {_KEY: json.dumps(asdict(self)).encode()}

    @classmethod
    def of_field(cls, metadata: Mapping[bytes, bytes] | None) -> Pixels | None:
        """Return how a column's bytes are meant; None for numbers that are meant as they are."""
        found = (metadata or {}).get(_KEY)
        if found is None:
            return None
        told = json.loads(found)
        return cls(told["scale"], tuple(told["mean"]), tuple(told["std"]), told["channels_last"])

    @property
    def factors(self) -> tuple[np.ndarray[Any, Any], ...]:
        """Scale, mean and std, float32 of four axes."""
        shape = (1, 1, 1, -1) if self.channels_last else (1, -1, 1, 1)
        values = ([self.scale], self.mean, self.std)
        return tuple(np.asarray(value, np.float32).reshape(shape) for value in values)


class PixelBackend:
    """A loaded backend that takes some of its inputs as bytes, by name, and normalizes them itself."""

    def __init__(self, backend: Backend, pixels: Mapping[str, Pixels]) -> None:
        self._backend = backend
        self._pixels = pixels
        self._factors: dict[str, tuple[Any, ...]] = {}
        self.inputs: Sequence[TensorSpec] = backend.inputs
        self.outputs: Sequence[TensorSpec] = backend.outputs

    def load(self, device: str, *, threads: int) -> None:
        """Load the backend."""
        self._backend.load(device, threads=threads)

    def forward(self, tensors: Tensors) -> Tensors:
        """Normalize, and run the model."""
        return self._backend.forward(
            {
                name: self._normalized(name, column) if name in self._pixels else column
                for name, column in tensors.items()
            }
        )

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def _normalized(self, name: str, pixels: Any) -> Any:
        """Return images, uint8 of four axes, as float32: on their device, without waiting for it. Each
        operation is rounded on its own, so that the numbers are the same everywhere."""
        is_array = isinstance(pixels, np.ndarray)
        numbers = pixels.astype(np.float32) if is_array else pixels.float()
        if name not in self._factors:
            found = self._pixels[name].factors
            # Brought to the device once: a copy makes the host wait.
            self._factors[name] = (
                found if is_array else tuple(numbers.new_tensor(factor.tolist()) for factor in found)
            )
        scale, mean, std = self._factors[name]
        numbers *= scale
        numbers -= mean
        numbers /= std
        return numbers


def with_pixels(backend: Backend, pixels: Mapping[str, Pixels]) -> Backend:
    """Let a backend take some inputs as bytes, if there are any."""
    return PixelBackend(backend, pixels) if pixels else backend
