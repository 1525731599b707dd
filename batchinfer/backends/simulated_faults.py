"""What goes wrong on a simulated device, raised as the real ones raise it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Literal, NoReturn, TypeAlias

from batchinfer.device_faults import DEVICE, NAMES, PROCESS
from batchinfer.errors import BatchinferError, DataError, OutOfMemory
from batchinfer.options import Options, field_validator, neutral
from batchinfer.user_code import device_error

Fault: TypeAlias = Literal[
    "error",
    "nan",
    "rows",
    "memory",
    "device",
    "connection",
    "timeout",
    "throttled",
    "segfault",
    "abort",
    "exit",
    "kill",
    "hang",
]

PASSING = frozenset({"connection", "timeout", "throttled"})
"""Faults that may be gone at the next attempt."""

_CODES = {name: code for code, name in NAMES.items() if code in PROCESS or code in DEVICE}
_TOO_MANY_REQUESTS = 429


class DeviceFaultOptions(Options):
    """What is wrong with a simulated device."""

    fault: str = neutral(...)
    """The name of a CUDA error, such as IllegalAddress or ECCUncorrectable, which every batch gets. load: it
    cannot be used at all. wrong: it computes, and its results are too large by one."""

    after: int = neutral(0, ge=0)
    """Batches of each process that go well before."""

    @field_validator("fault")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in {"load", "wrong", *_CODES}:
            raise ValueError(f"must be load, wrong or one of {', '.join(_CODES)}, got {value!r}")
        return value


class AcceleratorError(RuntimeError):
    """The namesake of torch's, with CUDA's number in `error_code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error: {NAMES[code]} (simulated)")
        self.error_code = code


class _TooManyRequests(Exception):
    """What a client raises for HTTP 429."""

    status_code = _TOO_MANY_REQUESTS


def fail(name: str) -> NoReturn:
    """Fail as a device does that reports a CUDA error. Raises DeviceError."""
    error = AcceleratorError(_CODES[name])
    found = device_error(error, f"the simulated device failed: {error}")
    assert found is not None
    raise found from error


def go_wrong(fault: Fault) -> None:
    """Do to a batch what a fault of one of its rows does: raise, end the process, or never return."""
    if fault == "error":
        raise DataError("the simulated model refuses a row of the batch")
    if fault == "memory":
        raise OutOfMemory("the simulated device has no memory for a row of the batch")
    if fault == "device":
        fail("IllegalAddress")
    if fault in PASSING:
        raise _passing(fault)
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "exit":
        os._exit(3)
    if fault == "abort":
        os.abort()  # in this thread: a signal to the process might find another one, later
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while fault == "hang":
        time.sleep(1)


def _passing(fault: str) -> BatchinferError:
    """Return an error that its cause shows to be a passing one."""
    cause: Exception = _TooManyRequests()
    if fault != "throttled":
        cause = ConnectionResetError() if fault == "connection" else TimeoutError()
    error = DataError(f"the simulated model failed: {type(cause).__name__}")
    error.__cause__ = cause
    return error
