"""How the GPUs of a run are, as their driver tells while others compute on them.

Xids are the driver's numbers for what happened to a GPU. A container may not be shown them, nor ECC counts:
then nobody watches, and what goes wrong is told by the workers that it ends.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from batchinfer import hardware

_WAIT_MS = 500
_PAUSE_S = 0.1
_LOOK_S = 5.0
_END_S = 2.0

RESET_XIDS = {
    46: "GPU stopped processing",
    48: "double-bit ECC error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    136: "link training failed",
}
"""Only a reset of the GPU, or of the machine, helps."""

RESTART_XIDS = {
    8: "GPU stopped processing",
    13: "graphics engine exception",
    31: "memory page fault",
    43: "GPU stopped processing",
    94: "contained memory error",
}
"""The process that it happened to must be started anew: its own errors tell it so."""

_SLOWDOWNS = {
    0x08: "its hardware slows it down",
    0x20: "it is slowed down because it is hot",
    0x40: "its hardware slows it down because it is hot",
    0x80: "its power supply slows it down",
}
"""Bits of NVML's reasons for lower clocks that stand for trouble."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a device. `is_fatal`: nothing that it computes from now on is to be trusted."""

    device: str
    what: str
    is_fatal: bool


class HealthWatch:
    """Watches the GPUs behind names such as `cuda:0`, in a thread of its own, as far as NVML lets it.

    A simulated device stands for the GPU of its number, where there is one.
    """

    def __init__(self, devices: Iterable[str]) -> None:
        self._troubles: queue.SimpleQueue[Trouble] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        names = [name for name in dict.fromkeys(devices) if name != "cpu"]
        nvml = hardware.nvml() if names else None
        if nvml is not None:
            found = hardware.gpus()
            gpus = [(name, found[at]) for name in names if (at := _number(name)) < len(found)]
            looks = [_Look(nvml, name, gpu.uuid) for name, gpu in gpus]
            self._thread = threading.Thread(
                target=self._watch, args=(nvml, looks), name="health", daemon=True
            )
            self._thread.start()

    def troubles(self) -> list[Trouble]:
        """Return what was found since the last call."""
        found = []
        while not self._troubles.empty():
            found.append(self._troubles.get())
        return found

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_END_S)

    def _watch(self, nvml: Any, looks: list[_Look]) -> None:
        events, due = _Events(nvml, looks), 0.0
        while not self._stop.is_set():
            found: list[Trouble] = []
            if time.monotonic() >= due:
                due = time.monotonic() + _LOOK_S
                found += (trouble for look in looks for trouble in look.look())
            found += events.wait()
            for trouble in found:
                self._troubles.put(trouble)
            # Where events are not told, that did not wait.
            self._stop.wait(_PAUSE_S)
        events.close()


class _Look:
    """Looks at one GPU from time to time."""

    def __init__(self, nvml: Any, name: str, uuid: str) -> None:
        self._nvml = nvml
        self.name = name
        self.handle = hardware.ask(nvml, "nvmlDeviceGetHandleByUUID", uuid)
        self._errors = self._uncorrected()
        self._slowdown = ""

    def look(self) -> Iterator[Trouble]:
        """Yield what has become wrong since the last look."""
        errors = self._uncorrected()
        if errors is not None and self._errors is not None and errors > self._errors:
            more = errors - self._errors
            yield Trouble(self.name, f"counts {more} more uncorrected ECC errors", is_fatal=True)
        self._errors = errors
        reasons = hardware.ask(self._nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", self.handle) or 0
        slowdown = "; ".join(text for bit, text in _SLOWDOWNS.items() if reasons & bit)
        if slowdown and slowdown != self._slowdown:
            yield Trouble(self.name, f"is slower than it could be: {slowdown}", is_fatal=False)
        self._slowdown = slowdown

    def _uncorrected(self) -> int | None:
        """Return how many uncorrected ECC errors there were since the driver was loaded."""
        kind = getattr(self._nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1)
        since = getattr(self._nvml, "NVML_VOLATILE_ECC", 0)
        count = hardware.ask(self._nvml, "nvmlDeviceGetTotalEccErrors", self.handle, kind, since)
        return None if count is None else int(count)


class _Events:
    """Waits for Xids of some GPUs, all at once."""

    def __init__(self, nvml: Any, looks: list[_Look]) -> None:
        self._nvml = nvml
        self._looks = looks
        self._set = hardware.ask(nvml, "nvmlEventSetCreate")
        self._kind = getattr(nvml, "nvmlEventTypeXidCriticalError", 8)
        self.are_told = False
        if self._set is None:
            return
        for look in looks:
            try:
                nvml.nvmlDeviceRegisterEvents(look.handle, self._kind, self._set)
                self.are_told = True
            except nvml.NVMLError:
                # A container, a slice or an older GPU: others may still tell.
                continue

    def wait(self) -> Iterator[Trouble]:
        """Wait a little, and yield what happened."""
        if not self.are_told:
            return
        # A time without events is an error of NVML's too.
        event = hardware.ask(self._nvml, "nvmlEventSetWait_v2", self._set, _WAIT_MS)
        if event is None or event.eventType != self._kind:
            return
        xid, name = int(event.eventData), self._name_of(event.device)
        if name is None:
            return
        if xid in RESET_XIDS:
            yield Trouble(name, f"reports Xid {xid}, {RESET_XIDS[xid]}", is_fatal=True)
        else:
            told = f", {RESTART_XIDS[xid]}" if xid in RESTART_XIDS else ""
            yield Trouble(name, f"reports Xid {xid}{told}", is_fatal=False)

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._set is not None:
            hardware.ask(self._nvml, "nvmlEventSetFree", self._set)

    def _name_of(self, handle: Any) -> str | None:
        """Return the name of a GPU by a handle, which need not be the very object that was registered."""
        uuid = hardware.ask(self._nvml, "nvmlDeviceGetUUID", handle)
        for look in self._looks:
            if hardware.ask(self._nvml, "nvmlDeviceGetUUID", look.handle) == uuid:
                return look.name
        return None


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)
