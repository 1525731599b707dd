"""Every error batchinfer raises on purpose, and the exit codes that schedulers read.

BatchinferError            70  a broken promise of ours: please report it
├─ UsageError               2  the command line is wrong
├─ BudgetExceeded           3  more failed rows than `errors.max` allows
├─ DataError               65  an input is corrupt, changed or drifted; or verify found a difference
│  └─ UserCodeError        65  code of the user's raised on some rows
├─ NoInputError            66  nothing matches `input.path`
├─ FingerprintError        67  the output belongs to a different job
├─ UnavailableError        69  a store or the network gave out
├─ DeviceError             71  no usable device, or the model cannot run on it
│  └─ OutOfMemory          71  its memory, or the host's, does not hold a batch
├─ UnsafeStoreError        73  the output store cannot commit safely
├─ LocalDiskError          74  the local disk is full or broken
├─ Interrupted             75  stopped early on request; the same command resumes
├─ AccessError             77  permission denied, or credentials that cannot be refreshed
└─ JobFileError            78  the job file is wrong
   └─ ContractError        78  the job's parts do not fit each other (columns, tensors, types)
"""

from __future__ import annotations

import enum
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from batchinfer.redact import redact, visible

if TYPE_CHECKING:
    from batchinfer.data import Unit


class ExitCode(enum.IntEnum):
    """What the process says to whoever started it. Frozen: schedulers depend on the numbers."""

    OK = 0
    CRASH = 1
    USAGE = 2
    DATA_QUALITY = 3
    DATA = 65
    NO_INPUT = 66
    FINGERPRINT = 67
    UNAVAILABLE = 69
    INTERNAL = 70
    DEVICE = 71
    UNSAFE_STORE = 73
    IO = 74
    INTERRUPTED = 75
    POISON = 76
    AUTH = 77
    CONFIG = 78
    EMPTY = 99


class BatchinferError(Exception):
    """An error with a place and a way out.

    `message` names the value and the harm, `where` the file, line or row, `hint` what to do next, `attempts`
    how often it was tried. Secrets are taken out of all of them, whoever put them in.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.where = where and redact(where)
        self.hint = hint and redact(hint)
        self.attempts = 1
        self._details = ""

    @property
    def details(self) -> str:
        """A worker's traceback, where the error happened in one."""
        return self._details

    @details.setter
    def details(self, text: str) -> None:
        self._details = redact(text)

    def __str__(self) -> str:
        """Return the message, the place and the way out, one to a line, safe on a terminal."""
        lines = [visible(self.message, lines=True)]
        if self.where:
            lines.append(f"  at {visible(self.where)}")
        if self.hint:
            lines.append(f"  → {visible(self.hint, lines=True)}")
        return "\n".join(lines)


class UsageError(BatchinferError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE
    kind = "usage"


class BudgetExceeded(BatchinferError):
    """More rows failed than `errors.max` allows; everything committed is kept."""

    exit_code = ExitCode.DATA_QUALITY
    kind = "errors"


class DataError(BatchinferError):
    """An input is corrupt, changed since it was planned, or drifted; or verify found a difference."""

    exit_code = ExitCode.DATA
    kind = "data"


class UserCodeError(DataError):
    """Code of the user's raised on some rows."""


class NoInputError(BatchinferError):
    """Nothing matches `input.path`."""

    exit_code = ExitCode.NO_INPUT
    kind = "input"


class FingerprintError(BatchinferError):
    """The output directory belongs to a different job."""

    exit_code = ExitCode.FINGERPRINT
    kind = "fingerprint"


class UnavailableError(BatchinferError):
    """A store or the network gave out; the same command resumes."""

    exit_code = ExitCode.UNAVAILABLE
    kind = "store"


class DeviceError(BatchinferError):
    """No usable device, or the model cannot be loaded on it.

    `fault` names what CUDA called it (see `device_faults.py`); empty where it is no fault of a device.
    """

    exit_code = ExitCode.DEVICE
    kind = "device"
    fault = ""


class OutOfMemory(DeviceError):
    """Memory, the device's or the host's, does not hold a batch; a smaller one may fit."""


class UnsafeStoreError(BatchinferError):
    """The output store ignores or lacks conditional writes, so a commit could be lost."""

    exit_code = ExitCode.UNSAFE_STORE
    kind = "commit"


class LocalDiskError(BatchinferError):
    """The local disk is full or broken; nothing unfinished was published."""

    exit_code = ExitCode.IO
    kind = "disk"


class Interrupted(BatchinferError):
    """Stopped early on request; the same command resumes."""

    exit_code = ExitCode.INTERRUPTED
    kind = "interrupted"


class AccessError(BatchinferError):
    """Permission denied, or credentials that cannot be refreshed."""

    exit_code = ExitCode.AUTH
    kind = "access"


class JobFileError(BatchinferError):
    """The job file is wrong. Lists every problem, each with its place."""

    exit_code = ExitCode.CONFIG
    kind = "job"


class ContractError(JobFileError):
    """The job's parts do not fit each other: a column, tensor or type that one gives and the next refuses."""


BY_EXIT_CODE: dict[int, type[BatchinferError]] = {
    cls.exit_code: cls
    for cls in (
        BatchinferError,
        UsageError,
        BudgetExceeded,
        DataError,
        NoInputError,
        FingerprintError,
        UnavailableError,
        DeviceError,
        UnsafeStoreError,
        LocalDiskError,
        Interrupted,
        AccessError,
        JobFileError,
    )
}
"""Rebuilds an error that crossed a process border."""

_MAX_TRACE = 20_000


def to_message(error: Exception) -> dict[str, Any]:
    """Return what crosses a process border of an error: its exit code, its texts, and the traceback."""
    known = (
        error if isinstance(error, BatchinferError) else BatchinferError(f"{type(error).__name__}: {error}")
    )
    trace = "".join(traceback.format_exception(error))
    # What a loader said stands first: there it went wrong.
    details = f"{known.details}\n{trace}" if known.details else trace
    return {
        "exit_code": int(known.exit_code),
        "message": known.message,
        "where": known.where,
        "hint": known.hint,
        "details": details[-_MAX_TRACE:],
        "fault": known.fault if isinstance(known, DeviceError) else "",
    }


def from_message(message: Mapping[str, Any]) -> BatchinferError:
    """Make what another process reported an error of ours again."""
    kind = BY_EXIT_CODE.get(message["exit_code"], BatchinferError)
    error = kind(message["message"], where=message["where"], hint=message["hint"])
    error.details = message["details"]
    if isinstance(error, DeviceError):
        error.fault = message.get("fault", "")
    return error


@contextmanager
def unit_context(unit: Unit) -> Iterator[None]:
    """Add the unit, its file and its rows to any `BatchinferError` that passes."""
    try:
        yield
    except BatchinferError as error:
        place = f"unit {unit.index}: {unit.shard.uri} rows {unit.start}..{unit.stop}"
        error.where = f"{error.where}; {place}" if error.where else place
        raise
