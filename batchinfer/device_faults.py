"""What a device's error means for the process that got it and for the device: told by CUDA's number for it.

The numbers are those of the CUDA 12 and 13 runtimes (`driver_types.h`). The first kind are errors after which
CUDA says that "the process must be terminated and relaunched"; the second makes the device itself suspect.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Harm: TypeAlias = Literal["memory", "process", "device"]

MEMORY = {2: "MemoryAllocation"}

PROCESS = {
    226: "Contained",
    700: "IllegalAddress",
    702: "LaunchTimeout",
    710: "Assert",
    714: "HardwareStackError",
    715: "IllegalInstruction",
    716: "MisalignedAddress",
    717: "InvalidAddressSpace",
    718: "InvalidPc",
    719: "LaunchFailure",
    721: "TensorMemoryLeak",
    810: "MpsClientTerminated",
    911: "ExternalDevice",
}
"""Nothing works in this process any more. Another one may do, also on this device; a row may be the cause."""

DEVICE = {
    3: "InitializationError",
    46: "DevicesUnavailable",
    100: "NoDevice",
    214: "ECCUncorrectable",
    220: "NvlinkUncorrectable",
    802: "SystemNotReady",
    999: "Unknown",
}
"""No row causes these: the device is tried once more by another process, and then left alone."""

CANARY = "canary"
"""The fault of a device that gave other results than it should."""

NAMES = {code: name for kind in (MEMORY, PROCESS, DEVICE) for code, name in kind.items()}
_CODES = {name: code for code, name in NAMES.items()}

_WRITTEN = re.compile(r"\bCUDA failure (\d+):")
"""How onnxruntime, whose errors have no attribute for it, writes CUDA's number."""

_ATTRIBUTES = {"AcceleratorError": "error_code", "CUDARuntimeError": "status"}
"""Classes that carry it: torch's and CuPy's."""


def cuda_code(error: BaseException) -> int | None:
    """Return CUDA's number for an error; None where it is none of CUDA's, or does not say.

    It is an attribute of the classes that have one, and read from the text of those that do not.
    """
    for cls in type(error).__mro__:
        if cls.__name__ in _ATTRIBUTES:
            code = getattr(error, _ATTRIBUTES[cls.__name__], None)
            return int(code) if isinstance(code, int) else None
    if not type(error).__module__.startswith("onnxruntime"):
        return None
    found = _WRITTEN.search(str(error))
    return int(found[1]) if found else None


def fault_of(error: BaseException) -> str:
    """Return the name of CUDA's error, such as `IllegalAddress`; empty where there is none that counts."""
    code = cuda_code(error)
    return "" if code is None else NAMES.get(code, f"CUDA error {code}")


def harm_of(fault: str) -> Harm:
    """Say what a fault harms. One that nobody knows harms the process, so that it is never used again."""
    if fault == CANARY or _CODES.get(fault) in DEVICE:
        return "device"
    return "memory" if _CODES.get(fault) in MEMORY else "process"
