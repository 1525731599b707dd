"""Which devices are still trusted. One that fails again and again is left alone, and the others go on.

Like a fuse: what a device does wrong is counted within ten minutes, and nothing closes an open circuit again
before the next run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from batchinfer.device_faults import CANARY, harm_of

_WINDOW_S = 600.0
_FAULTS = 2
_CHARGES = 3


class Circuits:
    """The devices of a run. Times are seconds of one monotonic clock."""

    def __init__(self, devices: Iterable[str]) -> None:
        self._open: set[str] = set()
        self._faults: dict[str, deque[float]] = {device: deque() for device in devices}
        self._charges: dict[str, deque[float]] = {device: deque() for device in self._faults}

    def is_open(self, device: str) -> bool:
        """Tell whether a device is left alone."""
        return device in self._open

    def has_others(self, device: str) -> bool:
        """Tell whether another device is trusted."""
        return any(other != device for other in self._faults.keys() - self._open)

    def open(self, device: str) -> None:
        """Trust a device no more."""
        self._open.add(device)

    def fault(self, device: str, fault: str, now: float) -> str | None:
        """Note the fault that ended a worker. Returns why its device is not to be trusted, once that is so.

        What makes the device suspect is forgiven once; other results than those of a golden batch never.
        """
        if harm_of(fault) != "device":
            return None
        if fault == CANARY:
            return "computes wrongly"
        return f"failed {_FAULTS} times ({fault})" if _count(self._faults[device], now) >= _FAULTS else None

    def charge(self, device: str, now: float) -> str | None:
        """Note that another device did a unit on which workers died here. Returns why this one is not to be
        trusted, once that is so."""
        if _count(self._charges[device], now) < _CHARGES or not self.has_others(device):
            return None
        return f"ended its worker on {_CHARGES} units that other devices did"


def _count(times: deque[float], now: float) -> int:
    """Add a time, forget the old ones, and return how many are left."""
    times.append(now)
    while now - times[0] > _WINDOW_S:
        times.popleft()
    return len(times)
