"""Stands before a device: batches that fail come out of it in pieces, without the rows to blame."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchinfer.data import OutputBatch
from batchinfer.engine.blame import REFUSALS, Isolated, Trust, isolate
from batchinfer.engine.care import entry_of, key_of
from batchinfer.engine.device import InFlight
from batchinfer.errors import BatchinferError, ContractError, DataError, OutOfMemory
from batchinfer.loader.batches import piece, with_stand_ins
from batchinfer.tensors import NUMERIC

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, TensorSpec
    from batchinfer.engine.care import Care
    from batchinfer.engine.ceiling import Ceiling

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
        care: Care,
        ceiling: Ceiling,
        exclusive: bool,
        bit: bool,
    ) -> None:
        self._submit = submit
        self._collect = collect
        self._turn: Any = threading.Lock() if exclusive else contextlib.nullcontext()
        self._numbers = {spec.name: spec.dtype for spec in outputs if spec.dtype in NUMERIC}
        self._care = care
        self._ceiling = ceiling
        self._bit = bit
        self._trust = Trust()

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue a batch. Where it fails at once, its pieces are computed here, in the model's own thread."""
        started = time.perf_counter()
        num_rows = len(batch.rows)
        if not num_rows:
            return self._submit(batch)
        cuts = self._care.cuts("model", batch.window.span.unit.index, key_of(batch), num_rows)
        most = self._ceiling.rows(batch) if len(cuts) == 1 and not self._bit else None
        if most is not None and most < num_rows:
            batch = dataclasses.replace(batch, fixed=False)
            cuts = [(at, min(at + most, num_rows), False) for at in range(0, num_rows, most)]
        if len(cuts) > 1:
            return InFlight(batch, {}, started, isolated=self._carefully(batch, cuts, started))
        slot = self._care.take(entry_of("model", batch, 0, num_rows))
        is_dead = True
        try:
            with self._turn:
                inflight = self._submit(batch)
            self._check(inflight.outputs, batch)
            is_dead = False
            return dataclasses.replace(inflight, slot=slot)
        except REFUSALS as refused:
            found = self._pieces(batch, refused, started)
            is_dead = False
            self._care.release(slot)
            return InFlight(batch, {}, started, isolated=found)
        finally:
            if is_dead:
                self._care.release(slot, is_dead=True)

    def collect(self, inflight: InFlight) -> OutputBatch:
        """Wait for a batch, or for its pieces."""
        if inflight.isolated is not None:
            return inflight.isolated
        if not len(inflight.batch.rows):
            return self._collect(inflight)
        started = time.perf_counter()
        is_dead = True
        try:
            output = self._collect(inflight)
            self._check(output.tensors, output.batch)
            self._trust.is_sound = True
            is_dead = False
        except REFUSALS as refused:
            output = self._pieces(inflight.batch, refused, started)
            is_dead = False
        finally:
            self._care.release(inflight.slot, is_dead=is_dead)
        return output

    def _carefully(
        self, batch: HostBatch, cuts: Sequence[tuple[int, int, bool]], started: float
    ) -> OutputBatch:
        """Compute a batch in which a worker died, in pieces."""
        pieces: list[OutputBatch] = []
        refused: dict[int, BatchinferError] = {}
        for start, stop, alone in cuts:
            part = piece(batch, start, stop)
            with self._care.holding(entry_of("model", batch, start, stop, alone=alone), alone=alone):
                try:
                    pieces.append(self._run(part))
                except REFUSALS as error:
                    found = self._pieces(part, error, started)
                    pieces += found.pieces
                    refused |= found.refused
        seconds = time.perf_counter() - started
        return OutputBatch(batch, {}, seconds, started=started, pieces=tuple(pieces), refused=refused)

    def _pieces(self, batch: HostBatch, refused: BatchinferError, started: float) -> OutputBatch:
        """Compute what can be computed of a batch."""

        def attempt(start: int, stop: int) -> OutputBatch:
            """Compute some of its rows."""
            return self._run(piece(parted, start, stop))

        # Where memory is short, a piece must not be filled up to the batch's shape.
        is_large = isinstance(refused, OutOfMemory)
        parted = dataclasses.replace(batch, fixed=batch.fixed and not is_large)
        found = isolate(len(batch.rows), attempt, refused, self._trust)
        # One row that never fits says nothing of the others.
        if is_large and not any(isinstance(error, OutOfMemory) for error in found.bad.values()):
            self._ceiling.learn(batch, max((stop - start for start, stop, _ in found.good), default=0))
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
            raise ContractError(
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
            if len(column) not in {len(batch.rows), len(batch.rows) + batch.filled}:
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
