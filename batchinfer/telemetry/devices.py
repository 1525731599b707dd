"""How the GPUs that a run uses are doing."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from batchinfer import hardware
from batchinfer.events import Event, RunFinished, RunStarted
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.energy import EnergyMeter
from batchinfer.xids import Xids, XidWatch

if TYPE_CHECKING:
    from batchinfer.telemetry.snapshot import Snapshot

_FRESH_S = 1.0
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A GPU, and how it is doing. Its ECC errors are those since the run began, as its Xids are."""

    gpu: Gpu
    sample: GpuSample


class _Growth:
    """What a counter has grown by since it was first read."""

    def __init__(self) -> None:
        self._total = 0
        self._last: int | None = None

    def to(self, count: int) -> int:
        """Take in what the counter says, and return the sum of its steps."""
        last = count if self._last is None else self._last
        # One that falls was reset, and has counted from zero since.
        self._total += count - last if count >= last else count
        self._last = count
        return self._total


class Watch(Protocol):
    """Counts what GPUs report by themselves."""

    def poll(self) -> None:
        """Take in what is new."""
        ...

    def of(self, uuid: str) -> Xids | None:
        """Return what one of them reported."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Devices:
    """Samples GPUs from a thread of its own: once a second while a run goes on, and when somebody asks, never
    more often. Never asks NVML in a run without GPUs.

    Nobody waits for a driver that hangs longer than `patience_s`, and only once: until it answers there are
    no readings. An observer, so that it hears when a run begins and ends.
    """

    def __init__(
        self,
        *,
        gpus: Callable[[], tuple[Gpu, ...]] = hardware.gpus,
        sample: Callable[[Gpu], GpuSample] = hardware.sample,
        watch: Callable[[Sequence[Gpu]], Watch] = XidWatch,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._find = gpus
        self._sample = sample
        self._begin_watch = watch
        self._clock = clock
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._names: set[str] = set()
        self._readings: dict[str, Reading] = {}
        self._energy: dict[str, EnergyMeter] = {}
        self._ecc_errors: dict[str, _Growth] = {}
        self._read_at: float | None = None
        self._asked = self._answered = 0
        self._runs = self._hangs = self._closed = False

    def on_event(self, event: Event) -> None:
        """Begin when a run with GPUs begins; look for the last time when it ends."""
        if isinstance(event, RunStarted) and _cuda(event.devices):
            with self._changed:
                self._names |= _cuda(event.devices)
                self._runs = True
                self._ask()
        elif isinstance(event, RunFinished) and self._thread is not None:
            with self._changed:
                self._runs = False
                self._wait()

    def close(self) -> None:
        """Sample no more; what was read last can still be had."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def readings(self, snapshot: Snapshot) -> tuple[Reading, ...]:
        """Return a reading of each GPU that a worker of the run uses, in the order of their numbers."""
        names = _cuda(worker.device for worker in snapshot.workers)
        if not names:
            return ()
        with self._changed:
            is_new = not names <= self._names
            self._names |= names
            if is_new or self._read_at is None or self._clock() - self._read_at >= _FRESH_S:
                self._wait()
            return tuple(reading for name, reading in self._readings.items() if name in names)

    def energy_joules(self) -> float | None:
        """Return what the run's GPUs took since it began; None where one of them does not tell, or hangs."""
        with self._changed:
            told = [] if self._hangs else [meter.joules for meter in self._energy.values()]
        known = [joules for joules in told if joules is not None]
        return sum(known) if known and len(known) == len(told) else None

    def _wait(self) -> None:
        """Have a sample taken and wait for it, unless the driver is known to hang."""
        if self._closed:
            return
        mine = self._ask()
        if not self._hangs and not self._changed.wait_for(lambda: self._answered >= mine, self._patience_s):
            self._hangs = True
            self._readings = {}

    def _ask(self) -> int:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="gpus", daemon=True)
            self._thread.start()
        self._asked += 1
        self._changed.notify_all()
        return self._asked

    def _watch(self) -> None:
        """Sample when it is asked for, and every second while a run goes on."""
        used: dict[str, Gpu] = {}
        xids: Watch | None = None
        while True:
            with self._changed:
                every_s = _FRESH_S if self._runs else None
                self._changed.wait_for(lambda: self._closed or self._asked > self._answered, every_s)
                if self._closed:
                    break
                asked, names = self._asked, set(self._names)
            if not names <= used.keys():
                found = {f"cuda:{gpu.index}": gpu for gpu in self._find()}
                used = {name: gpu for name, gpu in found.items() if name in names}
                xids = self._begin_watch(list(used.values()))
            assert xids is not None
            xids.poll()
            readings = {name: Reading(gpu, self._sampled(gpu, xids)) for name, gpu in used.items()}
            with self._changed:
                self._note(readings)
                self._answered = asked
                self._changed.notify_all()
        if xids is not None:
            xids.close()

    def _sampled(self, gpu: Gpu, xids: Watch) -> GpuSample:
        sample, told = self._sample(gpu), xids.of(gpu.uuid)
        if sample.ecc_errors is not None:
            grown = self._ecc_errors.setdefault(gpu.uuid, _Growth()).to(sample.ecc_errors)
            sample = dataclasses.replace(sample, ecc_errors=grown)
        return (
            sample if told is None else dataclasses.replace(sample, num_xids=told.count, last_xid=told.last)
        )

    def _note(self, readings: dict[str, Reading]) -> None:
        self._read_at, self._readings, self._hangs = self._clock(), readings, False
        for name, reading in readings.items():
            self._energy.setdefault(name, EnergyMeter()).add(self._read_at, reading.sample)


def _cuda(devices: Iterable[str]) -> set[str]:
    return {device for device in devices if device.startswith("cuda")}
