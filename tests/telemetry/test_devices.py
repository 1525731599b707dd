"""How GPUs are sampled: off the hot path, as long as the run goes on, and never in the way of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from batchinfer.events import RunFinished
from batchinfer.hardware import Gpu, GpuSample, gpus, sample
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.energy import EnergyMeter
from batchinfer.xids import Xids, XidWatch

CARDS = tuple(Gpu(index=index, uuid=f"GPU-{index}", name="x", memory_total_bytes=None) for index in range(3))
END = RunFinished(exit_code=0, seconds=1.0, complete=True)


class NoXids:
    """Reports one error of the second GPU."""

    def __init__(self, cards: Sequence[Gpu]) -> None:
        self.cards = cards

    def poll(self) -> None:
        """There is nothing to take in."""

    def of(self, uuid: str) -> Xids | None:
        """Tell of one."""
        return Xids(1, 79) if uuid == "GPU-1" else None

    def close(self) -> None:
        """Stop."""


def devices_of(run: Any, sample: Callable[[Gpu], GpuSample], **more: Any) -> Devices:
    """Return the devices of a run that has begun on the first two GPUs, and hears of its end."""
    devices = Devices(gpus=lambda: CARDS, sample=sample, watch=NoXids, clock=run.clock, **more)
    run.hear.insert(0, devices.on_event)
    run.start(workers=2, devices=("cuda:0", "cuda:1"))
    run.ready(0, "cuda:0")
    run.ready(1, "cuda:1")
    return devices


def test_only_the_gpus_of_the_run_are_sampled(run: Any) -> None:
    """Readings are those of the GPUs that workers use, with the Xids that were reported."""
    devices = devices_of(run, lambda gpu: GpuSample(power_watts=gpu.index))
    readings = devices.readings(run.tally.snapshot())
    assert [(reading.gpu.index, reading.sample.power_watts) for reading in readings] == [(0, 0), (1, 1)]
    assert [(reading.sample.num_xids, reading.sample.last_xid) for reading in readings] == [
        (None, None),
        (1, 79),
    ]
    devices.close()
    run.clock.now += 100
    assert devices.readings(run.tally.snapshot()) == readings


def test_memory_errors_count_since_the_run_began(run: Any) -> None:
    """What a GPU had before is none of the run's; a counter that was reset goes on from there."""
    counted = {"GPU-0": 7, "GPU-1": None}
    devices = devices_of(run, lambda gpu: GpuSample(ecc_errors=counted[gpu.uuid]))
    told = []
    for second, count in enumerate((7, 9, 1, 2)):
        counted["GPU-0"] = count
        run.clock.now = 10.0 * second
        told.append([reading.sample.ecc_errors for reading in devices.readings(run.tally.snapshot())])
    assert told == [[0, None], [2, None], [3, None], [4, None]]
    devices.close()


def test_the_energy_of_a_run(run: Any) -> None:
    """What the counters say between the first sample and the last, of all GPUs that the run uses."""
    first = threading.Event()
    counted = {"GPU-0": 1000.0, "GPU-1": 5000.0}

    def sample(gpu: Gpu) -> GpuSample:
        if gpu.index == 1:
            first.set()
        return GpuSample(energy_joules=counted[gpu.uuid])

    devices = devices_of(run, sample)
    assert first.wait(10)
    assert devices.energy_joules() is None or devices.energy_joules() == 0
    devices.readings(run.tally.snapshot())
    counted.update({"GPU-0": 1100.0, "GPU-1": 5250.0})
    run.say(END)
    assert devices.energy_joules() == 350
    devices.close()


def test_the_energy_of_some_is_that_of_none(run: Any) -> None:
    """Where one GPU tells neither energy nor power, the sum is not known, and none is shown."""
    devices = devices_of(run, lambda gpu: GpuSample(power_watts=50.0) if gpu.index else GpuSample())
    devices.readings(run.tally.snapshot())
    run.clock.now = 10.0
    devices.readings(run.tally.snapshot())
    assert devices.energy_joules() is None
    devices.close()


@pytest.mark.parametrize(
    ("samples", "joules"),
    [
        ([GpuSample(energy_joules=100.0)], None),
        ([GpuSample(energy_joules=100.0), GpuSample(energy_joules=150.0)], 50),
        ([GpuSample(energy_joules=100.0), GpuSample(energy_joules=3.0), GpuSample(energy_joules=9.0)], 6),
        ([GpuSample(power_watts=10.0), GpuSample(power_watts=30.0), GpuSample(power_watts=30.0)], 50),
        ([GpuSample(power_watts=10.0), GpuSample(), GpuSample()], None),
    ],
)
def test_energy_from_counters_or_from_power(samples: list[GpuSample], joules: float | None) -> None:
    """A counter is believed, one that was reset goes on from there; without one, power counts by the second."""
    meter = EnergyMeter()
    for second, taken in enumerate(samples):
        meter.add(float(second), taken)
    assert meter.joules == joules


def test_a_driver_that_hangs_is_waited_for_once(run: Any) -> None:
    """Whoever asks waits a moment, the next one not at all; when the driver answers again, so do we."""
    free = threading.Event()
    free.set()

    def sample(gpu: Gpu) -> GpuSample:
        assert free.wait(30)
        return GpuSample(power_watts=1.0)

    devices = devices_of(run, sample, patience_s=0.2)
    assert len(devices.readings(run.tally.snapshot())) == 2
    free.clear()
    run.clock.now = 10.0
    assert devices.readings(run.tally.snapshot()) == ()
    began = time.monotonic()
    for _ in range(100):
        assert devices.readings(run.tally.snapshot()) == ()
    run.say(END)
    assert time.monotonic() - began < 5
    free.set()
    deadline = time.monotonic() + 10
    while not devices.readings(run.tally.snapshot()):
        assert time.monotonic() < deadline, "it did not recover"
    devices.close()


@pytest.mark.gpu
def test_a_real_gpu_tells_how_it_is() -> None:
    """On a machine with a GPU: its memory and utilization are known, its figures are of a sane size."""
    found = gpus()
    if not found:
        pytest.skip("there is no GPU")
    told = sample(found[0])
    assert told.memory_used_bytes is not None
    assert found[0].memory_total_bytes is not None
    assert 0 < told.memory_used_bytes <= found[0].memory_total_bytes
    assert told.utilization_ratio is None or 0 <= told.utilization_ratio <= 1
    assert told.temperature_celsius is None or 5 < told.temperature_celsius < 120
    assert told.power_watts is None or 1 < told.power_watts < 2000
    assert told.sm_clock_hertz is None or 1e8 < told.sm_clock_hertz < 1e10
    watch = XidWatch(found[:1])
    watch.poll()
    watch.close()
