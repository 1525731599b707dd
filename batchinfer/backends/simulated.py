"""A model that takes its time and computes what anyone can check: for tests, demos and benchmarks."""

from __future__ import annotations

import fcntl
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchinfer.backends.simulated_faults import PASSING, DeviceFaultOptions, Fault, fail, go_wrong
from batchinfer.backends.type_text import Signature, parse_specs
from batchinfer.backends.unused_keys import not_for
from batchinfer.clock import Clock, SystemClock
from batchinfer.config.sections import ModelOptions
from batchinfer.errors import ContractError, OutOfMemory
from batchinfer.options import Field, field_validator, neutral
from batchinfer.tensors import NUMERIC

if TYPE_CHECKING:
    from batchinfer.data import Tensors, TensorSpec


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
    whatever batch. device: it fails, as after an illegal address. connection, timeout, throttled: what a
    service that a model asks may have for an answer. segfault, abort, exit, kill: the process is gone. hang:
    it never comes back."""

    recovers: int | None = neutral(None, ge=1)
    """Attempts at a row after which connection, timeout and throttled are over. null: never."""

    device_faults: dict[str, DeviceFaultOptions] = neutral(dict)
    """What goes wrong with devices: `{"simulated:1": {fault: ECCUncorrectable, after: 10}}`."""

    leak_bytes: int = neutral(0, ge=0)
    """Bytes of host memory that each batch takes and never gives back."""

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
        self._trouble: DeviceFaultOptions | None = None
        self._batches = 0
        self._failed: Counter[float] = Counter()
        self._leaked: list[bytearray] = []
        self._most_rows = 0
        self._faults = np.array([float(value) for value in options.faults])
        self.inputs: Sequence[TensorSpec] = ()
        self.outputs: Sequence[TensorSpec] = ()

    def load(self, device: str, *, threads: int) -> None:
        """Wait for `load_seconds`. Raises ContractError for outputs whose size is not known."""
        del threads
        self._trouble = self._options.device_faults.get(device)
        if self._trouble is not None and self._trouble.fault == "load":
            fail("DevicesUnavailable")
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
        self._batches += 1
        if self._options.leak_bytes:
            self._leaked.append(bytearray(b"x") * self._options.leak_bytes)
        total = np.sum(sums, axis=0)
        doubled = 2 * total + self._device_error()
        if self._options.memory_rows is not None and num_rows > self._options.memory_rows:
            raise OutOfMemory(f"the simulated device's memory holds {self._options.memory_rows} rows")
        self._most_rows = max(self._most_rows, num_rows)
        keep = np.ones(num_rows, dtype=bool)
        for value in np.intersect1d(total, self._faults):
            fault, hit = self._options.faults[str(float(value))], total == value
            if fault == "rows":
                keep &= ~hit
            elif fault == "nan":
                doubled = np.where(hit, np.nan, doubled)
            elif fault not in PASSING or not self._is_over(float(value)):
                go_wrong(fault)
        doubled = doubled if keep.all() else doubled[keep]
        return {spec.name: _filled(spec, doubled) for spec in self.outputs}

    def _device_error(self) -> float:
        """Return by how much the device miscomputes. Raises DeviceError where it has failed."""
        if self._trouble is None or self._batches <= self._trouble.after:
            return 0.0
        if self._trouble.fault != "wrong":
            fail(self._trouble.fault)
        return 1.0

    def _is_over(self, value: float) -> bool:
        """Count an attempt at a row, and tell whether what was wrong with it has passed."""
        self._failed[value] += 1
        return self._options.recovers is not None and self._failed[value] > self._options.recovers

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
