"""A model that takes its time and computes what anyone can check: for tests, demos and benchmarks."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchinfer.backends.type_text import Signature, parse_specs
from batchinfer.backends.unused_keys import not_for
from batchinfer.clock import Clock, SystemClock
from batchinfer.config.sections import ModelOptions
from batchinfer.errors import ContractError, DataError, DeviceError, OutOfMemory
from batchinfer.options import Field, field_validator, neutral
from batchinfer.tensors import NUMERIC

if TYPE_CHECKING:
    from batchinfer.data import Tensors, TensorSpec


Fault = Literal["error", "nan", "rows", "memory", "device", "segfault", "abort", "exit", "kill", "hang"]


def _linear() -> Signature:
    return Signature(inputs={"x": "float32[?]"}, outputs={"y": "float32[?]"})


class SimulatedOptions(ModelOptions):
    """No file: y = 2 x, after a while."""

    backend: Literal["simulated"] = "simulated"
    """simulated"""

    seconds_per_batch: float = neutral(0.02, ge=0)
    """Seconds that a batch takes, however many rows it has."""

    seconds_per_row: float = neutral(0.0, ge=0)
    """Seconds that each row adds to its batch."""

    load_seconds: float = neutral(0.0, ge=0)
    """Seconds that loading takes."""

    exclusive: bool = neutral(default=False)
    """Compute one batch at a time across all processes of this machine, as one device would."""

    cache_rows: int | None = neutral(None, ge=1)
    """Rows that its cache holds: each row of a batch beyond them takes twice as long."""

    memory_rows: int | None = neutral(None, ge=1)
    """Rows that its memory holds: a larger batch is refused, as a device would."""

    faults: dict[str, Fault] = Field(default_factory=dict)
    """What goes wrong with rows, by the sum of their inputs: `{"7.0": error}`. error: the model refuses the
    batch. nan: the row's results are NaN. rows: a result is missing. memory: no memory for the row, in
    whatever batch. device: the device fails, as after an illegal address. segfault, abort, exit, kill: the
    process is gone. hang: it never comes back."""

    signature: Signature = Field(default_factory=_linear)
    """What it takes and gives. By default `x: float32[?]` and `y: float32[?]`."""

    @field_validator("faults")
    @classmethod
    def _sums(cls, value: dict[str, Fault]) -> dict[str, Fault]:
        return {str(float(text)): fault for text, fault in value.items()}

    _no_file = field_validator("entry", "path", "precision")(not_for("simulated"))


class SimulatedBackend:
    """Every number that a row gets is twice the sum of the row's inputs: y = 2 x for one number.

    A text counts as the CRC-32 of its UTF-8 bytes; text that is given is that number, written out.
    So a result that stands in the wrong row, or was computed from padding, is seen.
    """

    Options = SimulatedOptions
    clock: ClassVar[Clock] = SystemClock()

    def __init__(self, options: SimulatedOptions) -> None:
        self._options = options
        self._lock: int | None = None
        self._most_rows = 0
        self._faults = np.array([float(value) for value in options.faults])
        self.inputs: Sequence[TensorSpec] = ()
        self.outputs: Sequence[TensorSpec] = ()

    def load(self, device: str, *, threads: int) -> None:
        """Wait for `load_seconds`. Raises ContractError for outputs whose size is not known."""
        del threads
        self.inputs = parse_specs(self._options.signature.inputs)
        self.outputs = parse_specs(self._options.signature.outputs)
        for spec in self.outputs:
            if None in spec.shape[1:] or spec.dtype not in NUMERIC | {"string"}:
                raise ContractError(
                    f"model.signature: the simulated backend cannot make up `{spec}`",
                    hint="give it numbers of known size, or string[?]",
                )
        if self._options.exclusive:
            name = f"batchinfer-simulated-{os.getuid()}-{device.replace(':', '')}.lock"
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.open(Path(tempfile.gettempdir()) / name, flags, 0o600)
        self.clock.sleep(self._options.load_seconds)

    def forward(self, tensors: Tensors) -> dict[str, Any]:
        """Compute a batch, for as long as the options say."""
        sums = [_row_sums(tensors[spec.name]) for spec in self.inputs]
        num_rows = len(sums[0])
        with self._alone():
            beyond = max(num_rows - (self._options.cache_rows or num_rows), 0)
            took = (num_rows + beyond) * self._options.seconds_per_row
            self.clock.sleep(self._options.seconds_per_batch + took)
        total = np.sum(sums, axis=0)
        doubled = 2 * total
        if self._options.memory_rows is not None and num_rows > self._options.memory_rows:
            raise OutOfMemory(f"the simulated device's memory holds {self._options.memory_rows} rows")
        self._most_rows = max(self._most_rows, num_rows)
        keep = np.ones(num_rows, dtype=bool)
        for value in np.intersect1d(total, self._faults):
            fault, hit = self._options.faults[str(float(value))], total == value
            if fault == "rows":
                keep &= ~hit
            else:
                doubled = _faulty(doubled, hit, fault)
        doubled = doubled if keep.all() else doubled[keep]
        return {spec.name: _filled(spec, doubled) for spec in self.outputs}

    def peak_memory(self) -> float | None:
        """Return the share of its memory that the batches since the last question took at most."""
        most, self._most_rows = self._most_rows, 0
        return most / self._options.memory_rows if self._options.memory_rows else None

    def close(self) -> None:
        """Forget the lock file; it stays, so that nobody waits on another one."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the machine-wide lock, if there is one. The system frees it when a process dies."""
        if self._lock is None:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def _faulty(values: np.ndarray[Any, Any], hit: np.ndarray[Any, Any], fault: Fault) -> np.ndarray[Any, Any]:
    """Return what a device that goes wrong on some rows gives, if anything."""
    if fault == "error":
        raise DataError("the simulated model refuses a row of the batch")
    if fault == "memory":
        raise OutOfMemory("the simulated device has no memory for a row of the batch")
    if fault == "device":
        raise DeviceError("the simulated device failed: an illegal memory access was encountered")
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "exit":
        os._exit(3)
    if fault in {"abort", "kill"}:
        os.kill(os.getpid(), signal.SIGABRT if fault == "abort" else signal.SIGKILL)
    while fault != "nan":
        time.sleep(1)
    return np.where(hit, np.nan, values)


def _row_sums(column: Any) -> np.ndarray[Any, Any]:
    """Return each row's sum, float64 of shape (rows,)."""
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        return np.array([zlib.crc32(str(text).encode()) for text in column.to_pylist()], np.float64)
    values = column if isinstance(column, np.ndarray) else column.cpu().numpy()
    result: np.ndarray[Any, Any] = values.reshape(len(values), -1).sum(axis=1, dtype=np.float64)
    return result


def _filled(spec: TensorSpec, values: np.ndarray[Any, Any]) -> Any:
    """Return an output in which every number of a row is the row's value."""
    if spec.dtype == "string":
        return pa.array([str(value) for value in values], pa.string())
    shape = (len(values), *(size or 1 for size in spec.shape[1:]))
    whole = np.broadcast_to(values.reshape(-1, *(1,) * (len(shape) - 1)), shape)
    return np.ascontiguousarray(whole).astype(spec.dtype)
