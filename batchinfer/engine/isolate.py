"""Stands before a device: batches that fail come out of it in pieces, without the rows to blame."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer.data import OutputBatch
from batchinfer.engine.blame import REFUSALS, Isolated, Trust, isolate
from batchinfer.engine.care import entry_of, key_of, numbers_of
from batchinfer.engine.device import InFlight
from batchinfer.engine.memory_use import free_memory
from batchinfer.errors import BatchinferError, ContractError, DataError, OutOfMemory
from batchinfer.loader.batches import piece, with_stand_ins
from batchinfer.tensors import NUMERIC

if TYPE_CHECKING:
    from batchinfer.config.machine import By
    from batchinfer.data import HostBatch, Poison, TensorSpec
    from batchinfer.engine.care import Care
    from batchinfer.engine.ceiling import Ceiling
    from batchinfer.engine.retry import Retry

_NO_NUMBERS = "OSUVMm"


class Isolator:
    """Submits and collects batches, and computes again, in pieces, those that fail.

    In pieces from the start come those that a worker died on, and those of more rows than fit into memory;
    `discard` is then told that the batch as it was staged is not needed. Rows that kill never come to the
    model: a good row stands in for each.

    `exclusive`: the model is called by one thread at a time. `by` is what `batching.size` counts. `unfit`
    tells which numbers results must not hold. `bit`: the good rows of a batch that failed are computed once
    more in a batch of its shape, so that their results are those of a batch that did not fail, to the last
    bit.
    """

    def __init__(
        self,
        submit: Callable[[HostBatch], InFlight],
        collect: Callable[[InFlight], OutputBatch],
        discard: Callable[[HostBatch], None],
        *,
        outputs: Sequence[TensorSpec],
        care: Care,
        ceiling: Ceiling,
        retry: Retry,
        exclusive: bool,
        by: By,
        bit: bool,
        unfit: Callable[[Any], Any] | None = None,
    ) -> None:
        self._submit = submit
        self._collect = collect
        self._discard = discard
        self._turn: Any = threading.Lock() if exclusive else contextlib.nullcontext()
        self._outputs = {spec.name: spec for spec in outputs if spec.dtype in NUMERIC}
        self._unfit = unfit
        self._care = care
        self._ceiling = ceiling
        self._retry = retry
        self._by = by
        self._bit = bit
        self._trust = Trust()

    def submit(self, batch: HostBatch) -> InFlight:
        """Queue a batch. Where it fails at once, its pieces are computed here, in the model's own thread."""
        started = time.perf_counter()
        num_rows = len(batch.rows)
        if not num_rows:
            return self._submit(batch)
        unit = batch.window.span.unit.index
        poison = self._poison(batch, unit)
        cuts = self._care.cuts("model", unit, key_of(batch), num_rows)
        fits = () if self._bit or len(cuts) > 1 else self._ceiling.cuts(batch)
        # A batch of one row is one piece, and wants as much care.
        if poison or any(alone for _, _, alone in cuts) or len(fits) > 1:
            self._discard(batch)
            if len(fits) > 1:
                # A piece must not be filled up to a shape that does not fit.
                batch = dataclasses.replace(batch, fixed=False)
                cuts = [(start, stop, False) for start, stop in fits]
            found = self._in_cuts(batch, cuts, poison, started)
            if len(fits) > 1 and not found.refused:
                self._ceiling.passed(batch)
            return InFlight(batch, {}, started, isolated=found)
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
            output = self._finite_rows(output, started)
            self._trust.is_sound = self._trust.is_sound or len(output.refused) < len(output.batch.rows)
            is_dead = False
        except REFUSALS as refused:
            output = self._pieces(inflight.batch, refused, started)
            is_dead = False
        finally:
            self._care.release(inflight.slot, is_dead=is_dead)
        return output

    def _poison(self, batch: HostBatch, unit: int) -> dict[int, Poison]:
        """Return the rows of a batch that kill, by their position in it."""
        known = self._care.poison(unit, ("model", "postprocess"))
        if not known:
            return {}
        numbers = numbers_of(batch, 0, len(batch.rows)).tolist()
        return {at: known[number] for at, number in enumerate(numbers) if number in known}

    def _in_cuts(
        self,
        batch: HostBatch,
        cuts: Sequence[tuple[int, int, bool]],
        poison: Mapping[int, Poison],
        started: float,
    ) -> OutputBatch:
        """Compute a batch in pieces, without the rows that kill."""
        pieces: list[OutputBatch] = []
        refused: dict[int, BatchinferError | Poison] = {}
        safe = with_stand_ins(batch, poison) if 0 < len(poison) < len(batch.rows) else batch
        for start, stop, alone in cuts:
            if all(at in poison for at in range(start, stop)):
                # Stand-ins would be tried in their name, and one of them may kill too.
                continue
            with self._care.holding(entry_of("model", batch, start, stop, alone=alone), alone=alone):
                found = self._piece(safe, start, stop, started)
            pieces += found.pieces
            refused |= found.refused
        killers = {int(batch.rows[at]): one for at, one in poison.items()}
        return OutputBatch(
            batch,
            {},
            time.perf_counter() - started,
            started=started,
            pieces=tuple(part for output in pieces for part in _without(output, killers)),
            refused=refused | killers,
        )

    def _piece(self, batch: HostBatch, start: int, stop: int, started: float) -> OutputBatch:
        """Compute some rows of a batch: alone; or, to the last bit as in the batch, in its shape."""
        part = piece(batch, start, stop)
        try:
            done = self._run_in_shape(batch, start, stop, ()) if self._bit else self._run(part)
        except REFUSALS as error:
            return self._pieces(part, error, started, of=batch, offset=start)
        return OutputBatch(part, {}, done.compute_s, started=started, pieces=(done,))

    def _pieces(
        self,
        batch: HostBatch,
        refused: BatchinferError,
        started: float,
        *,
        of: HostBatch | None = None,
        offset: int = 0,
    ) -> OutputBatch:
        """Compute what can be computed of a batch, which may be a piece `of` one, at an `offset`."""

        def attempt(start: int, stop: int) -> OutputBatch:
            """Compute some of its rows."""
            return self._run(piece(parted, start, stop))

        # Where memory is short, a piece must not be filled up to the shape of the batch.
        is_large = isinstance(refused, OutOfMemory)
        if is_large:
            free_memory(refused)
        parted = dataclasses.replace(batch, fixed=batch.fixed and not is_large)
        found = isolate(len(batch.rows), attempt, refused, self._trust, self._retry)
        # One row that never fits says nothing of the others.
        if is_large and not any(isinstance(error, OutOfMemory) for error in found.bad.values()):
            self._ceiling.learn(batch, [(start, stop) for start, stop, _ in found.good])
        if self._bit and found.good:
            found = self._in_shape(of or batch, offset, len(batch.rows), found, refused)
        return OutputBatch(
            batch,
            {},
            time.perf_counter() - started,
            started=started,
            pieces=tuple(output for _, _, output in found.good),
            refused={int(batch.rows[at]): error for at, error in found.bad.items()},
        )

    def _in_shape(
        self,
        batch: HostBatch,
        offset: int,
        num_rows: int,
        found: Isolated[OutputBatch],
        refused: BatchinferError,
    ) -> Isolated[OutputBatch]:
        """Compute the good ones of some rows once more, in a batch of the shape of theirs. Raises
        ContractError where that cannot be done: then no result is what `bit` promises."""

        def attempt() -> OutputBatch:
            """Compute them all."""
            return self._run_in_shape(batch, offset, offset + num_rows, found.bad)

        # A row that never fits was all that was too large; without one the same batch would fail again.
        is_large = isinstance(refused, OutOfMemory)
        last = refused
        if not is_large or any(isinstance(error, OutOfMemory) for error in found.bad.values()):
            try:
                whole = self._patiently(attempt)
            except REFUSALS as error:
                last = error
            else:
                good = tuple((start, stop, rows_of(whole, start, stop)) for start, stop, _ in found.good)
                return Isolated(good, found.bad)
        hint = "compute: {determinism: rows}"
        if isinstance(last, OutOfMemory):
            fits = max((stop - start for start, stop, _ in found.good), default=0)
            size = size_of(batch, fits, self._by)
            hint = f"{fits} rows of it fit: batching: {{by: {self._by}, size: {size}}}, or determinism: rows"
        raise ContractError(
            f"{last.message}; compute.determinism is bit, so that the batch cannot be split", hint=hint
        ) from last

    def _patiently(self, attempt: Callable[[], OutputBatch]) -> OutputBatch:
        try:
            return attempt()
        except REFUSALS as error:
            return self._retry.again(error, attempt)

    def _run_in_shape(self, batch: HostBatch, start: int, stop: int, bad: Collection[int]) -> OutputBatch:
        """Compute rows [start, stop) of a batch in its shape, with good rows for all others; `bad` counts
        from `start`."""
        others = (*range(start), *(start + at for at in bad), *range(stop, len(batch.rows)))
        return rows_of(self._run(with_stand_ins(batch, others)), start, stop)

    def _run(self, batch: HostBatch) -> OutputBatch:
        with self._turn:
            inflight = self._submit(batch)
        output = self._collect(inflight)
        self._judge(output)
        return output

    def _judge(self, output: OutputBatch) -> None:
        """Raise DataError where results are not what they must be."""
        self._check(output.tensors, output.batch)
        spoilt, name = self._spoilt(output)
        if spoilt.any():
            raise not_finite(name)

    def _spoilt(self, output: OutputBatch) -> tuple[np.ndarray[Any, Any], str]:
        """Tell which rows have a result that holds what it must not, bool of shape (rows,), and its name.
        Arrow arrays, which a class may give, are judged row by row once they have their type."""
        spoilt, which = np.zeros(len(output.batch.rows), dtype=bool), ""
        if self._unfit is None:
            return spoilt, which
        for name, column in output.tensors.items():
            is_tensor = name in self._outputs and isinstance(column, np.ndarray)
            if is_tensor and (unfit := self._unfit(column)).any():
                # Rows that only fill the batch up are copies of one that counts.
                each = unfit[: len(spoilt)].reshape(len(spoilt), -1).any(axis=1)
                spoilt, which = spoilt | each, name
        return spoilt, which

    def _finite_rows(self, output: OutputBatch, started: float) -> OutputBatch:
        """Compute rows again whose results are not finite, neighbours together: one row may have spoilt the
        others, so that nobody knows yet whose fault it is."""
        batch = output.batch
        spoilt, name = self._spoilt(output)
        if not spoilt.any():
            return output
        if spoilt.all():
            return self._pieces(batch, not_finite(name), started)
        pieces: list[OutputBatch] = []
        refused: dict[int, BatchinferError | Poison] = {}
        edges = [0, *(np.flatnonzero(np.diff(spoilt)) + 1).tolist(), len(spoilt)]
        for start, stop in itertools.pairwise(edges):
            if not spoilt[start]:
                pieces.append(rows_of(output, start, stop))
                continue
            found = self._piece(batch, start, stop, started)
            pieces += found.pieces
            refused |= found.refused
        seconds = time.perf_counter() - started
        return OutputBatch(batch, {}, seconds, started=started, pieces=tuple(pieces), refused=refused)

    def _check(self, outputs: Mapping[str, Any], batch: HostBatch) -> None:
        """Raise DataError where the model gave another number of rows than it got, no numbers, or numbers of
        another shape than it said."""
        wanted = len(batch.rows) + batch.filled
        for name, column in outputs.items():
            is_one = getattr(column, "ndim", 1) == 0
            if is_one or len(column) != wanted:
                given = "one value" if is_one else f"{len(column)} rows"
                raise DataError(
                    f"the model gave {given} of {name!r} for a batch of {wanted}",
                    hint="its results must have one row for each row that it gets",
                )
            spec = self._outputs.get(name)
            if spec is None or not hasattr(column, "shape"):
                continue
            if getattr(column.dtype, "kind", "f") in _NO_NUMBERS:
                raise DataError(f"the model gave {name!r} as {column.dtype}, which is no {spec.dtype}")
            sizes = tuple(column.shape)
            if len(sizes) != len(spec.shape) or any(
                size not in (None, given) for size, given in zip(spec.shape[1:], sizes[1:], strict=True)
            ):
                raise DataError(f"the model gave {name!r} with the shape {sizes}, which is no {spec}")


def not_finite(name: str) -> DataError:
    """Return what a row fails with whose result holds NaN or infinity."""
    return DataError(f"result {name!r} holds NaN or infinity, which errors.check_finite refuses")


def size_of(batch: HostBatch, num_rows: int, by: By) -> int:
    """Return how large the first rows of a batch are, in what `batching.size` counts."""
    if by == "rows":
        return num_rows
    if by == "bytes":
        held = sum(column.nbytes for column in batch.tensors.values())
        return held * num_rows // (len(batch.rows) + batch.filled)
    if batch.lengths is not None and batch.is_packed:
        return int(batch.lengths[:num_rows].sum())
    return max(batch.width, 1) * num_rows


def rows_of(output: OutputBatch, start: int, stop: int) -> OutputBatch:
    """Return results [start, stop) of a batch, with their inputs."""
    tensors = {name: column[start:stop] for name, column in output.tensors.items()}
    return OutputBatch(piece(output.batch, start, stop), tensors, 0.0)


def _without(output: OutputBatch, killers: Collection[int]) -> Iterator[OutputBatch]:
    """Yield what is left of results without some rows of their window."""
    rows = output.batch.rows.tolist()
    at = 0
    for stop in (*(place for place, row in enumerate(rows) if row in killers), len(rows)):
        if (at, stop) == (0, len(rows)):
            yield output
        elif at < stop:
            yield rows_of(output, at, stop)
        at = stop + 1
