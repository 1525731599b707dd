"""How much energy GPUs take over a run: by their counters, or their power where they have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchinfer.hardware import GpuSample


class EnergyMeter:
    """The energy of one GPU since its first sample, whoever used it."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._last: tuple[float, GpuSample] | None = None
        self._is_known = False

    def add(self, now: float, sample: GpuSample) -> None:
        """Take in a sample; between two of them without a counter, the power is taken for even."""
        if self._last is not None:
            then, before = self._last
            if before.energy_joules is not None and sample.energy_joules is not None:
                # A counter that falls was reset: the driver was loaded anew.
                self._joules += max(0.0, sample.energy_joules - before.energy_joules)
                self._is_known = True
            elif before.power_watts is not None and sample.power_watts is not None:
                self._joules += (before.power_watts + sample.power_watts) / 2 * max(0.0, now - then)
                self._is_known = True
        self._last = now, sample

    @property
    def joules(self) -> float | None:
        """The energy so far; None where the GPU tells neither energy nor power."""
        return self._joules if self._is_known else None
