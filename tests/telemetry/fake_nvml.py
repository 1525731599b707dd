"""A stand-in for pynvml: the functions that we call, with its own signatures and errors."""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from typing import Any

import pynvml

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
    xids: list[int] = field(default_factory=list)


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

    def nvmlDeviceGetClockInfo(self, handle: Card, type: int) -> int:  # noqa: A002, N802
        """Tell a clock, in MHz."""
        name = {pynvml.NVML_CLOCK_SM: "sm clock", pynvml.NVML_CLOCK_MEM: "memory clock"}[type]
        self._tell(handle, name)
        return {"sm clock": 2040, "memory clock": 6250}[name]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Card) -> int:  # noqa: N802
        """Tell why clocks are low; unknown to older drivers."""
        self._tell(handle, "reasons")
        self._tell(handle, "new reasons")
        reasons = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown
        return int(reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Card) -> int:  # noqa: N802
        """Tell why clocks are low, the old way."""
        self._tell(handle, "reasons")
        return int(pynvml.nvmlClocksThrottleReasonHwSlowdown | pynvml.nvmlClocksThrottleReasonGpuIdle)

    def nvmlDeviceGetTotalEccErrors(self, handle: Card, errorType: int, counterType: int) -> int:  # noqa: N802, N803
        """Count memory errors."""
        assert errorType == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        assert counterType == pynvml.NVML_VOLATILE_ECC
        self._tell(handle, "ecc")
        return 3

    def nvmlDeviceGetPcieThroughput(self, device: Card, counter: int) -> int:  # noqa: N802
        """Tell what goes over PCIe, in KiB a second."""
        sends = counter == pynvml.NVML_PCIE_UTIL_TX_BYTES
        self._tell(device, "pcie send" if sends else "pcie receive")
        return 1000 if sends else 2000

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice: Card) -> Card:  # noqa: N802, N803
        """Find the GPU of a slice."""
        for card in self.cards:
            if migDevice in (card.slices or []):
                return card
        raise pynvml.NVMLError_InvalidArgument

    def nvmlEventSetCreate(self) -> list[str]:  # noqa: N802
        """Begin to collect events."""
        return []

    def nvmlDeviceRegisterEvents(self, handle: Card, eventTypes: int, eventSet: list[str]) -> None:  # noqa: N802, N803
        """Collect those of a GPU."""
        assert eventTypes == pynvml.nvmlEventTypeXidCriticalError
        eventSet.append(self._tell(handle, "events").uuid)

    def nvmlEventSetWait_v2(self, eventSet: list[str], timeoutms: int) -> Any:  # noqa: N802, N803
        """Take the next event of the cards that are watched."""
        for card in self.cards:
            if card.uuid in eventSet and card.xids:
                return types.SimpleNamespace(device=card, eventType=8, eventData=card.xids.pop(0))
        raise pynvml.NVMLError_Timeout

    def nvmlEventSetFree(self, eventSet: list[str]) -> None:  # noqa: N802, N803
        """Collect no more."""
        eventSet.clear()

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
