"""The user's own code: imported when it is needed, and named by its line where it fails.

While it is set up there is no row yet, and its errors are told as they are. Once it gets rows, the text of
its errors may quote them: then only their class and place are told, and the traceback keeps the rest.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchinfer.device_faults import cuda_code, fault_of, harm_of
from batchinfer.errors import BatchinferError, ContractError, DeviceError, OutOfMemory, UserCodeError

_NOT_THEIRS = (
    str(Path(__file__).parent),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    "<frozen",
)
_NO_MEMORY = {"MemoryError", "OutOfMemoryError"}
_DEVICE = {"AcceleratorError", "CUDARuntimeError"}
_CUDA_TEXTS = ("CUDA error", "CUDA driver error", "cuDNN error")
"""How torch begins what it raises as a plain RuntimeError: cuDNN's and cuBLAS's errors, all before 2.8."""
_CPU_ALLOCATOR = "DefaultCPUAllocator"


def load_entry(entry: str) -> Any:
    """Import `module:name`. Raises ContractError where there is no such module or name in it."""
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        # A module of the user's raises anything while it is imported.
        raise ContractError(
            f"cannot import {entry}: {told(error)}",
            where=place(error),
            hint="put the module beside the job file, or install its package",
        ) from error


@contextmanager
def setting_up(entry: str) -> Iterator[None]:
    """Run code of the user's before any row is there. Raises ContractError with the text of its error
    and the line, DeviceError where the device is at fault."""
    try:
        yield
    except BatchinferError:
        raise
    except Exception as error:
        if fault := device_error(error, f"{entry} failed: {told(error)}"):
            raise fault from error
        raise ContractError(f"{entry} failed: {told(error)}", where=place(error)) from error


def call(entry: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the user's function with rows. Raises UserCodeError that names the line where it raised, and
    DeviceError where the device is at fault."""
    try:
        return function(*arguments)
    except BatchinferError:
        raise
    # One that calls sys.exit means its own program, which this is not.
    except (Exception, SystemExit) as error:
        home = getattr(sys.modules.get(entry.partition(":")[0]), "__file__", None)
        where, kind = place(error, home=home), type(error).__name__
        if fault := device_error(error, f"{entry} raised {kind}", where=where):
            raise fault from error
        raise UserCodeError(
            f"{entry} raised {kind}",
            where=where,
            hint="BATCHINFER_DEBUG=1 shows its text and the whole traceback, which may quote rows",
        ) from error


def device_error(error: BaseException, message: str, *, where: str | None = None) -> DeviceError | None:
    """Return an error with this message where it is not the rows that `error` is about, but the device or
    its memory."""
    names = {cls.__name__ for cls in type(error).__mro__}
    fault = fault_of(error)
    no_memory = bool(names & _NO_MEMORY) or (bool(fault) and harm_of(fault) == "memory")
    if no_memory or (cuda_code(error) is None and _CPU_ALLOCATOR in str(error)):
        hint = "try a smaller batching.size, or fewer compute.workers_per_device"
        return OutOfMemory(message, where=where, hint=hint)
    is_plain = type(error) is RuntimeError and str(error).startswith(_CUDA_TEXTS)
    if not fault and not names & _DEVICE and not is_plain:
        return None
    found = DeviceError(message, where=where, hint="`batchinfer doctor` shows the devices")
    found.fault = fault
    return found


def told(error: BaseException) -> str:
    """Return an error's class and text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def place(error: BaseException, *, home: str | None = None) -> str | None:
    """Return file:line of the deepest frame in the user's own code, first of all in the file `home`.

    Not that of the deepest frame of all: that one may be inside a library that the user's line called.
    """
    frames = traceback.extract_tb(error.__traceback__)
    in_home = [frame for frame in frames if frame.filename == home]
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    last = (in_home or theirs)[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else None
