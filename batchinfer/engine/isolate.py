"""Stands before a device: batches that fail come out of it in pieces, without the rows to blame."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchinfer.data import OutputBatch
from batchinfer.engine.blame import REFUSALS, Isolated, Trust, isolate
from batchinfer.engine.device import InFlight
from batchinfer.errors import BatchinferError, DataError, DeviceError, OutOfMemory
from batchinfer.loader.batches import piece, with_stand_ins
from batchinfer.tensors import NUMERIC

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, TensorSpec

_NO_NUMBERS = "OSUVMm"


class Isolator:
    """Submits and collects batches, and computes again, in pieces, those that fail.

    `exclusive`: the model is called by one thread at a time. `bit`: the good rows of a batch that failed
    are computed once more in a batch of its shape, so that their results are those of a batch that did
    not fail, to the last bit.
    """

    def __init__(
        self,
        submit: Callable[[HostBatch], InFlight],
        collect: Callable[[InFlight], OutputBatch],
        *,
        outputs: Sequence[TensorSpec],
        exclusive: bool,
        bit: bool,
    ) -> None:
        self._submit = submit
        self._collect = collect
        self._turn: Any = threading.Lock() if exclusive else contextlib.nullcontext()
        self._numbers = {spec.name: spec.dtype for spec in outputs if spec.dtype in NUMERIC}
        self._bit = bit
        self._trust = Trust()

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue a batch. Where it fails at once, its pieces are computed here, in the model's own thread."""
        started = time.perf_counter()
        try:
            with self._turn:
                inflight = self._submit(batch)
            self._check(inflight.outputs, batch)
        except REFUSALS as refused:
            found = self._pieces(batch, refused, started)
            return InFlight(batch, {}, started, isolated=found)
        return inflight

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Wait for a batch, or for its pieces."""
        if inflight.isolated is not None:
            return inflight.isolated
        started = time.perf_counter()
        try:
            output = self._collect(inflight)
            self._check(output.tensors, output.batch)
        except REFUSALS as refused:
            return self._pieces(inflight.batch, refused, started)
        self._trust.is_sound |= bool(len(output.batch.rows))
        return output

    def _pieces(self, batch: HostBatch, refused: BatchinferError, started: float) -> OutputBatch:
        """Compute what can be computed of a batch."""

        def attempt(start: int, stop: int) -> OutputBatch:
            """Compute some of its rows."""
            return self._run(piece(batch, start, stop))

        found = isolate(len(batch.rows), attempt, refused, self._trust)
        if self._bit and found.good:
            found = self._in_shape(batch, found, refused)
        return OutputBatch(
            batch,
            {},
            time.perf_counter() - started,
            started=started,
            pieces=tuple(output for _, _, output in found.good),
            refused={int(batch.rows[at]): error for at, error in found.bad.items()},
        )

    def _in_shape(
        self, batch: HostBatch, found: Isolated[OutputBatch], refused: BatchinferError
    ) -> Isolated[OutputBatch]:
        """Compute the good rows once more, in a batch of the shape of that which failed."""
        if isinstance(refused, OutOfMemory):
            fits = max((stop - start for start, stop, _ in found.good), default=0)
            raise DeviceError(
                f"{refused.message}; compute.determinism is bit, so that the batch cannot be split",
                hint=f"{fits} rows of it fit: set batching.size accordingly, or determinism: rows",
            ) from refused
        with contextlib.suppress(*REFUSALS):
            whole = self._run(with_stand_ins(batch, found.bad))
            good = tuple((start, stop, rows_of(whole, start, stop)) for start, stop, _ in found.good)
            return Isolated(good, found.bad)
        return found

    def _run(self, batch: HostBatch) -> OutputBatch:
        with self._turn:
            inflight = self._submit(batch)
        output = self._collect(inflight)
        self._check(output.tensors, batch)
        return output

    def _check(self, outputs: Mapping[str, Any], batch: HostBatch) -> None:
        """Raise DataError where the model gave another number of rows than it got, or no numbers."""
        for name, column in outputs.items():
            if len(column) != len(batch.rows):
                raise DataError(
                    f"the model gave {len(column)} rows of {name!r} for a batch of {len(batch.rows)}",
                    hint="its results must have one row for each row that it gets",
                )
            if name in self._numbers and getattr(getattr(column, "dtype", None), "kind", "f") in _NO_NUMBERS:
                raise DataError(
                    f"the model gave {name!r} as {column.dtype}, which is no {self._numbers[name]}"
                )


def rows_of(output: OutputBatch, start: int, stop: int) -> OutputBatch:
    """Return results [start, stop) of a batch, with their inputs."""
    tensors = {name: column[start:stop] for name, column in output.tensors.items()}
    return OutputBatch(piece(output.batch, start, stop), tensors, 0.0)
