"""GPUs through NVML: read where there are some, and nothing at all where there are none."""

from __future__ import annotations

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from batchinfer import hardware
from batchinfer.errors import DeviceError
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.xids import Xids, XidWatch
from tests.telemetry.fake_nvml import GIB, Card, FakeNvml


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNvml]:
    """Put a fake library in the place of pynvml."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(*cards: Card, **more: Any) -> FakeNvml:
        fake = FakeNvml(list(cards), **more)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return put


def names(indexes: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", indexes)
    return [gpu.uuid for gpu in hardware.gpus()]


def test_the_fake_has_the_signatures_of_the_library() -> None:
    """Every function of the stand-in takes the parameters that the real one takes."""
    functions = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(functions) > 10
    for name in functions:
        mine = list(inspect.signature(getattr(FakeNvml([]), name)).parameters)
        assert mine == list(inspect.signature(getattr(pynvml, name)).parameters), name


@pytest.mark.parametrize("as_bytes", [False, True])
def test_gpus_are_described(install: Callable[..., FakeNvml], as_bytes: bool) -> None:
    """Index, UUID, name and memory come out, whether the binding gives text or bytes."""
    install(Card("GPU-a"), Card("GPU-b", name="NVIDIA H100", memory=80 * GIB), as_bytes=as_bytes)
    first, second = hardware.gpus()
    assert (first.index, first.uuid, first.name, first.memory_total_bytes) == (
        0,
        "GPU-a",
        "NVIDIA L4",
        24 * GIB,
    )
    assert (second.index, second.name) == (1, "NVIDIA H100")


def test_a_sample_is_in_base_units(install: Callable[..., FakeNvml]) -> None:
    """Percent become a ratio, milliwatts watts, millijoules joules."""
    install(Card("GPU-a"))
    assert hardware.sample(hardware.gpus()[0]) == GpuSample(
        utilization_ratio=0.97,
        memory_used_bytes=3 * GIB,
        temperature_celsius=64.0,
        power_watts=70.25,
        energy_joules=1.5,
        sm_clock_hertz=2.04e9,
        memory_clock_hertz=6.25e9,
        throttled_by=("power_cap", "heat"),
        ecc_errors=3,
        pcie_send_bytes_per_second=1000 * 1024,
        pcie_receive_bytes_per_second=2000 * 1024,
    )


@pytest.mark.parametrize(
    ("lacks", "missing"),
    [
        ("utilization", "utilization_ratio"),
        ("memory", "memory_used_bytes"),
        ("temperature", "temperature_celsius"),
        ("power", "power_watts"),
        ("energy", "energy_joules"),
        ("sm clock", "sm_clock_hertz"),
        ("memory clock", "memory_clock_hertz"),
        ("reasons", "throttled_by"),
        ("ecc", "ecc_errors"),
        ("pcie send", "pcie_send_bytes_per_second"),
        ("pcie receive", "pcie_receive_bytes_per_second"),
    ],
)
def test_what_a_gpu_does_not_tell_is_none(install: Callable[..., FakeNvml], lacks: str, missing: str) -> None:
    """Each figure may be unsupported by itself, and the others stay."""
    install(Card("GPU-a", lacks=frozenset({lacks})))
    sample = hardware.sample(hardware.gpus()[0])
    found = {name: getattr(sample, name) for name in GpuSample.__dataclass_fields__ if "xid" not in name}
    assert [name for name, value in found.items() if value is None] == [missing]


def test_an_old_driver_tells_the_temperature_too(install: Callable[..., FakeNvml]) -> None:
    """Where the new function is missing, the old one is asked."""
    install(Card("GPU-a", lacks=frozenset({"new temperature"})))
    assert hardware.sample(hardware.gpus()[0]).temperature_celsius == 63.0


def test_an_old_driver_tells_why_clocks_are_low(install: Callable[..., FakeNvml]) -> None:
    """Where the new function is missing, the old one is asked; idling is no reason."""
    install(Card("GPU-a", lacks=frozenset({"new reasons"})))
    assert hardware.sample(hardware.gpus()[0]).throttled_by == ("hardware",)


def test_the_reasons_are_those_of_the_library() -> None:
    """Every bit by which clocks are lowered has a word, and no other one."""
    named = sum(hardware.THROTTLES.values())
    harmless = pynvml.nvmlClocksEventReasonGpuIdle | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    harmless |= pynvml.nvmlClocksEventReasonDisplayClockSetting
    assert named | harmless == pynvml.nvmlClocksEventReasonAll
    assert named & harmless == 0


def test_xids_are_counted(install: Callable[..., FakeNvml]) -> None:
    """Errors that the driver reports are counted by GPU, those of a slice as its GPU's, from when somebody
    watches; a GPU that reports none has an unknown number."""
    first, deaf = Card("GPU-a", xids=[79, 48]), Card("GPU-b", lacks=frozenset({"events"}))
    cut = Card("GPU-c", slices=[Card("MIG-1")], xids=[63])
    install(first, deaf, cut)
    gpus = [Gpu(index=0, uuid=uuid, name="", memory_total_bytes=None) for uuid in ("GPU-a", "GPU-b", "MIG-1")]
    watch = XidWatch(gpus)
    assert watch.of("GPU-a") == Xids()
    watch.poll()
    assert [watch.of(gpu.uuid) for gpu in gpus] == [Xids(2, 48), None, Xids(1, 63)]
    first.xids.append(31)
    watch.poll()
    assert watch.of("GPU-a") == Xids(3, 31)
    watch.close()
    assert watch.of("GPU-a") is None


def test_without_a_driver_there_are_no_xids(install: Callable[..., FakeNvml]) -> None:
    """Nobody to ask is no error."""
    install(broken=pynvml.NVMLError_LibraryNotFound)
    watch = XidWatch([Gpu(index=0, uuid="GPU-a", name="", memory_total_bytes=None)])
    watch.poll()
    assert watch.of("GPU-a") is None
    watch.close()


def test_a_gpu_without_a_name_or_memory_is_still_one(install: Callable[..., FakeNvml]) -> None:
    """A GPU with unified memory counts like any other."""
    install(Card("GPU-a", lacks=frozenset({"name", "memory"})))
    (gpu,) = hardware.gpus()
    assert (gpu.name, gpu.memory_total_bytes) == ("NVIDIA GPU", None)


def test_a_gpu_that_is_gone_gives_an_empty_sample(install: Callable[..., FakeNvml]) -> None:
    """A GPU that fell off the bus makes no noise."""
    install(Card("GPU-a"))
    (gpu,) = hardware.gpus()
    install()
    assert hardware.sample(gpu) == GpuSample()


def test_gpus_of_others_are_left_out(install: Callable[..., FakeNvml]) -> None:
    """In a container, GPUs that NVML counts and refuses are not ours; ours are numbered from 0."""
    install(Card("GPU-a", hidden=True), Card("GPU-b"))
    (gpu,) = hardware.gpus()
    assert (gpu.index, gpu.uuid) == (0, "GPU-b")


def test_visible_devices_are_followed(
    install: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and UUIDs choose and order; the first that means nothing ends the list."""
    install(Card("GPU-aa"), Card("GPU-ab"), Card("GPU-c"))
    assert names("2,0", monkeypatch) == ["GPU-c", "GPU-aa"]
    assert names(" 1 , GPU-c", monkeypatch) == ["GPU-ab", "GPU-c"]
    assert names("0,-1,2", monkeypatch) == ["GPU-aa"]
    assert names("0,7,2", monkeypatch) == ["GPU-aa"]
    assert names("GPU-a,2", monkeypatch) == []
    assert names("NoDevFiles", monkeypatch) == []
    assert names("", monkeypatch) == []
    assert names("1,1", monkeypatch) == []


def test_a_sliced_gpu_is_one_slice(install: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA shows a process one MIG slice, the first or the one asked for, and no GPU beside it."""
    slices = [
        Card("MIG-1", name="NVIDIA A100 MIG 1g.5gb", memory=5 * GIB, lacks=frozenset({"power", "energy"})),
        Card("MIG-2"),
    ]
    install(Card("GPU-whole"), Card("GPU-cut", slices=slices))
    (gpu,) = hardware.gpus()
    assert (gpu.uuid, gpu.name, gpu.memory_total_bytes) == ("MIG-1", "NVIDIA A100 MIG 1g.5gb", 5 * GIB)
    assert hardware.sample(gpu).power_watts is None
    assert hardware.sample(gpu).memory_used_bytes == 3 * GIB
    assert names("MIG-2", monkeypatch) == ["MIG-2"]
    assert names("1", monkeypatch) == ["MIG-1"]
    assert names("0", monkeypatch) == ["GPU-whole"]


def test_a_gpu_prepared_for_slices_without_any_is_none(install: Callable[..., FakeNvml]) -> None:
    """CUDA cannot use a GPU in MIG mode that has no slices, and neither can we."""
    install(Card("GPU-cut", slices=[]))
    assert hardware.gpus() == ()


def test_without_a_driver_there_is_silence(install: Callable[..., FakeNvml]) -> None:
    """No library means no GPUs: no warning, no error, no problem to report."""
    install(Card("GPU-a"), broken=pynvml.NVMLError_LibraryNotFound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hardware.gpus() == ()
        assert hardware.problem() is None


def test_without_the_binding_there_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pynvml works like a machine without GPUs."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert hardware.gpus() == ()
    assert hardware.problem() is None


def test_a_driver_that_does_not_answer_is_a_problem(install: Callable[..., FakeNvml]) -> None:
    """A GPU that silently is not used is worse than an error: the reason can be asked for."""
    install(Card("GPU-a"), broken=pynvml.NVMLError_LibRmVersionMismatch)
    assert hardware.gpus() == ()
    assert "LibRmVersionMismatch" in (hardware.problem() or "")


def test_a_driver_that_hangs_is_an_error_in_time(
    install: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a run begins, a driver that does not come back is an error and not a wait without an end."""
    fake, free = install(Card("GPU-a")), threading.Event()
    assert [gpu.uuid for gpu in hardware.gpus_in_time()] == ["GPU-a"]
    monkeypatch.setattr(fake, "nvmlDeviceGetCount", lambda: free.wait(30) and 1)
    with pytest.raises(DeviceError, match=r"did not answer in 0\.05 s"):
        hardware.gpus_in_time(0.05)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.gpus_in_time(0.05) == ()
    free.set()


def test_this_machine_can_be_asked() -> None:
    """The real library answers or is absent; either way nothing is raised."""
    assert all(gpu.uuid for gpu in hardware.gpus())


def test_the_cores_next_to_a_gpu(install: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker stays on the cores of its GPU's node, of those that it may use, if there are enough."""
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(60, 100)))
    given: list[frozenset[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: given.append(cores))
    far, near = Card("GPU-a", lacks=frozenset({"affinity"})), Card("GPU-b", near=tuple(range(64, 128)))
    install(far, near)
    assert hardware.cores_near(0) == frozenset()
    assert hardware.cores_near(1) == frozenset(range(64, 128))
    assert hardware.cores_near(2) == frozenset()
    assert hardware.stay_near(0, at_least=1) == frozenset()
    assert hardware.stay_near(1, at_least=37) == frozenset()
    assert given == []
    assert hardware.stay_near(1, at_least=36) == frozenset(range(64, 100))
    assert given == [frozenset(range(64, 100))]
