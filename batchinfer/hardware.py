"""The GPUs that this process may compute on, and how they are doing, as NVML tells.

A machine without an NVIDIA driver simply has none. Whatever one GPU cannot tell is None.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batchinfer.errors import DeviceError

_MIG_ENABLED = 1
_PATIENCE_S = 30.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_ECC_UNCORRECTED, _ECC_VOLATILE = 1, 0
_PCIE_SEND, _PCIE_RECEIVE = 0, 1
_MHZ, _KIB = 1_000_000, 1024
_WORD_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU (or a MIG slice of one). `index` is the N of `cuda:N` in this process."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """A GPU at one moment. `energy_joules` and `ecc_errors`, those that could not be corrected, count since
    its driver was loaded. A MIG slice has no power, temperature or energy of its own."""

    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    throttled_by: tuple[str, ...] | None = None
    """Why its clocks are lower than they could be, of `THROTTLES`; idling and what the owner set are no
    reasons."""

    ecc_errors: int | None = None
    pcie_send_bytes_per_second: float | None = None
    pcie_receive_bytes_per_second: float | None = None
    num_xids: int | None = None
    last_xid: int | None = None
    """Xid errors since somebody watches, and the last one's number: `XidWatch` tells."""


THROTTLES = {
    "power_cap": 0x04,
    "hardware": 0x08,
    "sync_boost": 0x10,
    "heat": 0x20 | 0x40,
    "power_brake": 0x80,
}
"""Why clocks are lowered, as NVML's bits (nvmlClocksEventReason*)."""


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA will number 0, 1, ... here; empty where there is none.

    `CUDA_VISIBLE_DEVICES` is followed as CUDA follows it. The order is NVML's, which is CUDA's on a
    machine with equal GPUs (elsewhere, set `CUDA_DEVICE_ORDER=PCI_BUS_ID`).
    """
    if os.environ.get(_VISIBLE, "all").strip() in {"", "-1"}:
        return ()  # nor is a driver asked that may hang
    nvml, _ = _library()
    if nvml is None:
        return ()
    return tuple(_describe(nvml, index, handle) for index, handle in enumerate(_visible(nvml)))


def gpus_in_time(patience_s: float = _PATIENCE_S) -> tuple[Gpu, ...]:
    """Return `gpus()`. Raises DeviceError where the driver does not answer in time: a run that took such a
    machine for one without GPUs would be slow, and one that waited would hang."""
    answers: queue.SimpleQueue[tuple[Gpu, ...]] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(gpus()), name="gpus", daemon=True).start()
    try:
        return answers.get(timeout=patience_s)
    except queue.Empty:
        raise DeviceError(
            f"the NVIDIA driver did not answer in {patience_s:g} s",
            hint="`nvidia-smi` will hang too: reset the GPU or restart the machine; "
            "to compute on its CPU, hide the GPUs from this process: CUDA_VISIBLE_DEVICES=",
        ) from None


def sample(gpu: Gpu) -> GpuSample:
    """Ask a GPU how it is doing. Takes some milliseconds, 40 of them for what goes over PCIe; never raises,
    but with a driver that hangs it does not come back."""
    nvml, _ = _library()
    handle = nvml and _ask(nvml, "nvmlDeviceGetHandleByUUID", gpu.uuid)
    if handle is None:
        return GpuSample()
    rates = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    return GpuSample(
        utilization_ratio=None if rates is None else rates.gpu / 100,
        memory_used_bytes=None if memory is None else int(memory.used),
        temperature_celsius=_temperature(nvml, handle),
        power_watts=_thousandths(_ask(nvml, "nvmlDeviceGetPowerUsage", handle)),
        energy_joules=_thousandths(_ask(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle)),
        sm_clock_hertz=_times(_ask(nvml, "nvmlDeviceGetClockInfo", handle, _CLOCK_SM), _MHZ),
        memory_clock_hertz=_times(_ask(nvml, "nvmlDeviceGetClockInfo", handle, _CLOCK_MEMORY), _MHZ),
        throttled_by=_throttles(nvml, handle),
        ecc_errors=_ask(nvml, "nvmlDeviceGetTotalEccErrors", handle, _ECC_UNCORRECTED, _ECC_VOLATILE),
        pcie_send_bytes_per_second=_times(
            _ask(nvml, "nvmlDeviceGetPcieThroughput", handle, _PCIE_SEND), _KIB
        ),
        pcie_receive_bytes_per_second=_times(
            _ask(nvml, "nvmlDeviceGetPcieThroughput", handle, _PCIE_RECEIVE), _KIB
        ),
    )


def cores_near(index: int) -> frozenset[int]:
    """Return the CPU cores of the NUMA node that a GPU hangs on; none where nobody can tell."""
    nvml, _ = _library()
    found = gpus()
    if nvml is None or index >= len(found):
        return frozenset()
    words = -(-(os.cpu_count() or 1) // _WORD_BITS)
    handle = _ask(nvml, "nvmlDeviceGetHandleByUUID", found[index].uuid)
    scope = getattr(nvml, "NVML_AFFINITY_SCOPE_NODE", 0)
    masks = (
        None if handle is None else _ask(nvml, "nvmlDeviceGetCpuAffinityWithinScope", handle, words, scope)
    )
    return frozenset(
        at * _WORD_BITS + bit
        for at, mask in enumerate(masks or ())
        for bit in range(_WORD_BITS)
        if int(mask) >> bit & 1
    )


def stay_near(index: int, *, at_least: int) -> frozenset[int]:
    """Keep this process, and what it starts, on the cores next to a GPU that it may use: memory that
    it touches first is then next to it too. Not where that leaves fewer than `at_least`. Returns them."""
    allowed = os.sched_getaffinity(0)
    near = cores_near(index) & allowed
    if len(near) < at_least or near == allowed:
        return frozenset()
    try:
        os.sched_setaffinity(0, near)
    except OSError:
        return frozenset()  # a sandbox may not
    return near


def take_turns() -> None:
    """Let the threads that this one starts not take a core from each other as soon as they wake up.

    Where compute and pipeline share the cores, a batch that is interrupted finds its cache gone: with
    SCHED_BATCH (sched(7)) a thread that wakes waits for its turn.
    """
    with contextlib.suppress(OSError, AttributeError):  # a sandbox may not, other systems have none
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def problem() -> str | None:
    """Say why NVML does not work although its library is installed; None where all is well."""
    nvml, trouble = _library()
    if nvml is not None or trouble is None or trouble.endswith("LibraryNotFound"):
        return None
    return f"the NVIDIA driver is installed but does not answer ({trouble.removeprefix('NVMLError_')})"


def nvml() -> Any:
    """Return NVML's functions, ready for calls; None where there is no driver."""
    return _library()[0]


def ask(library: Any, function: str, *args: Any) -> Any:
    """Call one function of NVML; None where this driver, GPU, slice or user may not."""
    return _ask(library, function, *args)


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver; None where there is none."""
    nvml, _ = _library()
    return _text(nvml and _ask(nvml, "nvmlSystemGetDriverVersion")) or None


def _library() -> tuple[Any, str | None]:
    """Return pynvml, ready for calls; or None and the name of what went wrong."""
    try:
        with warnings.catch_warnings():
            # The deprecated namesake of nvidia-ml-py warns at import; it serves as well.
            warnings.simplefilter("ignore")
            import pynvml
    except ImportError:
        return None, None
    try:
        # Counts its callers, so calling it again costs nothing.
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, type(error).__name__
    return pynvml, None


def _ask(nvml: Any, function: str, *args: Any) -> Any:
    """Call one function of NVML; None where this driver, GPU, slice or user may not."""
    try:
        return getattr(nvml, function)(*args)
    except (nvml.NVMLError, AttributeError):
        return None


def _visible(nvml: Any) -> list[Any]:
    """Return the handles of the devices that CUDA shows this process, in its order."""
    count = _ask(nvml, "nvmlDeviceGetCount") or 0
    whole = [_ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(count)]
    # In a container NVML may count GPUs that it then refuses to hand out.
    cards = [_Card(handle, *_slices(nvml, handle)) for handle in whole if handle is not None]
    asked = os.environ.get(_VISIBLE)
    if asked is None:
        chosen = [device for card in cards for device in card.devices]
    else:
        chosen = _chosen([token.strip() for token in asked.split(",")], cards, lambda h: _uuid(nvml, h))
    slices = [device for device in chosen if any(card.sliced and device in card.devices for card in cards)]
    # CUDA gives a process one slice, and then no whole GPU beside it.
    return slices[:1] or chosen


@dataclass(frozen=True, slots=True)
class _Card:
    """A physical GPU: itself, or the slices that CUDA sees in its place."""

    handle: Any
    sliced: bool
    devices: list[Any]


def _slices(nvml: Any, handle: Any) -> tuple[bool, list[Any]]:
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    if mode is None or mode[0] != _MIG_ENABLED:
        return False, [handle]
    count = _ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    found = [_ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index) for index in range(count)]
    return True, [device for device in found if device is not None]


def _chosen(tokens: Sequence[str], cards: Sequence[_Card], uuid_of: Callable[[Any], str]) -> list[Any]:
    """Follow `CUDA_VISIBLE_DEVICES`: numbers and UUID prefixes, up to the first that means nothing."""
    chosen: list[Any] = []
    for token in tokens:
        if token.isdecimal():
            found = cards[int(token)].devices[:1] if int(token) < len(cards) else []
        elif token.startswith("GPU-"):
            found = [
                card.devices[0] for card in cards if card.devices and uuid_of(card.handle).startswith(token)
            ]
        elif token.startswith("MIG-"):
            slices = [device for card in cards if card.sliced for device in card.devices]
            found = [device for device in slices if uuid_of(device).startswith(token)]
        else:
            found = []
        if len(found) != 1:
            break
        if found[0] in chosen:
            return []  # CUDA shows nothing where one is named twice
        chosen += found
    return chosen


def _describe(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    return Gpu(
        index=index,
        uuid=_uuid(nvml, handle),
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)) or "NVIDIA GPU",
        memory_total_bytes=None if memory is None else int(memory.total),
    )


def _uuid(nvml: Any, handle: Any) -> str:
    return _text(_ask(nvml, "nvmlDeviceGetUUID", handle))


def _temperature(nvml: Any, handle: Any) -> float | None:
    # The first is for new drivers, the second goes away with CUDA 14.
    for function in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"):
        found = _ask(nvml, function, handle, nvml.NVML_TEMPERATURE_GPU)
        if found is not None:
            return float(found)
    return None


def _throttles(nvml: Any, handle: Any) -> tuple[str, ...] | None:
    # The first is for new drivers, and says the same.
    for function in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        found = _ask(nvml, function, handle)
        if found is not None:
            return tuple(word for word, bits in THROTTLES.items() if int(found) & bits)
    return None


def _times(value: int | None, unit: int) -> float | None:
    return None if value is None else float(value * unit)


def _thousandths(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _text(value: bytes | str | None) -> str:
    """Return text: older bindings give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
