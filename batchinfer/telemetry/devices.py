"""How the GPUs that a run uses are doing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer import hardware
from batchinfer.hardware import Gpu, GpuSample

if TYPE_CHECKING:
    from batchinfer.telemetry.snapshot import Snapshot

_FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A GPU, and how it is doing."""

    gpu: Gpu
    sample: GpuSample


class Devices:
    """Samples GPUs at most once a second, whoever asks. Never asks NVML in a run without GPUs."""

    def __init__(
        self,
        *,
        gpus: Callable[[], tuple[Gpu, ...]] = hardware.gpus,
        sample: Callable[[Gpu], GpuSample] = hardware.sample,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = gpus
        self._sample = sample
        self._clock = clock
        self._lock = threading.Lock()
        self._gpus: dict[str, Gpu] | None = None
        self._readings: tuple[Reading, ...] = ()
        self._read_at: float | None = None

    def readings(self, snapshot: Snapshot) -> tuple[Reading, ...]:
        """Return a reading of each GPU that a worker of the run uses, in the order of their numbers."""
        names = {worker.device for worker in snapshot.workers if worker.device.startswith("cuda")}
        if not names:
            return ()
        with self._lock:
            now = self._clock()
            if self._read_at is None or now - self._read_at >= _FRESH_S:
                self._read_at = now
                self._readings = tuple(Reading(gpu, self._sample(gpu)) for gpu in self._used(names))
            return self._readings

    def _used(self, names: set[str]) -> list[Gpu]:
        if self._gpus is None:
            self._gpus = {f"cuda:{gpu.index}": gpu for gpu in self._find()}
        return [gpu for name, gpu in self._gpus.items() if name in names]
