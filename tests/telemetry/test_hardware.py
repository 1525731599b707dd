"""GPUs through NVML: read where there are some, and nothing at all where there are none."""

from __future__ import annotations

import inspect
import os
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

from batchinfer import hardware
from batchinfer.hardware import GpuSample

GIB = 2**30


@dataclass(eq=False)
class Card:
    """A GPU, or a slice of one, as the fake library knows it. `lacks` names what it does not tell."""

    uuid: str
    name: str = "NVIDIA L4"
    memory: int = 24 * GIB
    slices: list[Card] | None = None
    lacks: frozenset[str] = frozenset()
    hidden: bool = False
    near: tuple[int, ...] = ()
    calls: list[str] = field(default_factory=list)


class FakeNvml(types.ModuleType):
    """Stands in for pynvml: the functions that we call, with its own signatures and errors."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_AFFINITY_SCOPE_NODE = pynvml.NVML_AFFINITY_SCOPE_NODE

    def __init__(
        self, cards: list[Card], *, as_bytes: bool = False, broken: type[Exception] | None = None
    ) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.as_bytes = as_bytes
        self.broken = broken

    def _all(self) -> list[Card]:
        return [*self.cards, *(part for card in self.cards for part in card.slices or [])]

    def _text(self, text: str) -> bytes | str:
        return text.encode() if self.as_bytes else text

    def _tell(self, handle: Card, what: str) -> Card:
        if what in handle.lacks:
            raise pynvml.NVMLError_NotSupported
        return handle

    def nvmlInit(self) -> None:  # noqa: N802
        """Load the library."""
        if self.broken is not None:
            raise self.broken

    def nvmlDeviceGetCpuAffinityWithinScope(self, handle: Card, cpuSetSize: int, scope: int) -> list[int]:  # noqa: N802, N803
        """Tell which cores are near, in words of 64."""
        assert scope == pynvml.NVML_AFFINITY_SCOPE_NODE
        mask = sum(1 << core for core in self._tell(handle, "affinity").near)
        return [mask >> 64 * word & 2**64 - 1 for word in range(cpuSetSize)]

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Count physical GPUs."""
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        """Find one by its number."""
        if self.cards[index].hidden:
            raise pynvml.NVMLError_NoPermission
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:  # noqa: N802
        """Find one, or a slice, by its UUID."""
        for card in self._all():
            if card.uuid == uuid:
                return card
        raise pynvml.NVMLError_NotFound

    def nvmlDeviceGetUUID(self, handle: Card) -> bytes | str:  # noqa: N802
        """Tell the UUID."""
        return self._text(handle.uuid)

    def nvmlDeviceGetName(self, handle: Card) -> bytes | str:  # noqa: N802
        """Tell the name."""
        return self._text(self._tell(handle, "name").name)

    def nvmlDeviceGetMemoryInfo(self, handle: Card, version: int | None = None) -> Any:  # noqa: N802
        """Tell the memory."""
        return types.SimpleNamespace(total=self._tell(handle, "memory").memory, used=3 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: Card) -> Any:  # noqa: N802
        """Tell the utilization, in percent."""
        self._tell(handle, "utilization")
        return types.SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetTemperatureV(  # noqa: N802
        self,
        handle: Card,
        sensor: int,
        version: int = pynvml.nvmlTemperature_v1,
    ) -> int:
        """Tell the temperature; unknown to older drivers."""
        self._tell(handle, "temperature")
        if "new temperature" in handle.lacks:
            raise pynvml.NVMLError_FunctionNotFound
        return 64 + sensor

    def nvmlDeviceGetTemperature(self, handle: Card, sensor: int) -> int:  # noqa: N802
        """Tell the temperature, the old way."""
        self._tell(handle, "temperature")
        return 63 + sensor

    def nvmlDeviceGetPowerUsage(self, handle: Card) -> int:  # noqa: N802
        """Tell the power, in milliwatts."""
        self._tell(handle, "power")
        return 70_250

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Card) -> int:  # noqa: N802
        """Tell the energy, in millijoules."""
        self._tell(handle, "energy")
        return 1_500

    def nvmlDeviceGetMigMode(self, device: Card) -> list[int]:  # noqa: N802
        """Tell whether it is sliced; not supported by most."""
        if device.slices is None:
            raise pynvml.NVMLError_NotSupported
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Card) -> int:  # noqa: N802
        """Tell how many slices there could be."""
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Card, index: int) -> Card:  # noqa: N802
        """Find a slice; the numbers have holes."""
        slices = device.slices or []
        if index % 2 or index // 2 >= len(slices):
            raise pynvml.NVMLError_NotFound
        return slices[index // 2]


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
    )


@pytest.mark.parametrize(
    ("lacks", "missing"),
    [
        ("utilization", "utilization_ratio"),
        ("memory", "memory_used_bytes"),
        ("temperature", "temperature_celsius"),
        ("power", "power_watts"),
        ("energy", "energy_joules"),
    ],
)
def test_what_a_gpu_does_not_tell_is_none(install: Callable[..., FakeNvml], lacks: str, missing: str) -> None:
    """Each figure may be unsupported by itself, and the others stay."""
    install(Card("GPU-a", lacks=frozenset({lacks})))
    sample = hardware.sample(hardware.gpus()[0])
    found = {name: getattr(sample, name) for name in GpuSample.__dataclass_fields__}
    assert [name for name, value in found.items() if value is None] == [missing]


def test_an_old_driver_tells_the_temperature_too(install: Callable[..., FakeNvml]) -> None:
    """Where the new function is missing, the old one is asked."""
    install(Card("GPU-a", lacks=frozenset({"new temperature"})))
    assert hardware.sample(hardware.gpus()[0]).temperature_celsius == 63.0


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
